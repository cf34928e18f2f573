"""Does my own network stall, and what does balancing change? A small transformer, balanced in one line."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import bessemer as bs
from bessemer.training.stalling import stalling

digits = bs.data.load("digits")


class Attention(nn.Module):
    """Every token looks at every other of its own image; written with linear layers, so that it can be balanced."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.together, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, places, width) in, as many out."""
        parts = self.together(self.norm(tokens)).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = scaled_dot_product_attention(query, key, value)
        return tokens + self.out(seen.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Each row of a digit is a token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, width), nn.Sequential(Attention(width), Attention(width))
        self.head = nn.Linear(8 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 1, 8, 8) in, logits (n, 10) out."""
        return self.head(self.blocks(self.embed(images[:, 0])).flatten(1))


torch.manual_seed(0)
model = Transformer()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
batches = bs.data.Batches(digits.train, 64)
beta, epsilon = 1.0, {"head": 0.8, "*": 0.6}  # by layer name; the first pattern that fits counts

with bs.balance(model, beta, epsilon) as balanced:
    print("balanced:", ", ".join(balanced.layers))
    for _ in range(150):
        batch = batches.next()
        optimizer.zero_grad()
        cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()

found = stalling(model, *digits.train.at(slice(500)), beta=beta, epsilon=epsilon)
print(f"{100 * found.accuracy:.1f} % of 500 samples are right; in effect, so many of them move the weights of")
for name, layer in found.layers.items():
    print(f"  {name:18} {500 * layer.before.effective_share:4.0f}, balanced {500 * layer.after.effective_share:4.0f}")
