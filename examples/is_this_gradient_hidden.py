"""Is this gradient small, or only hidden? Multiply a network's logits by 100: its answers stay, its gradients go."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bessemer as bs

torch.manual_seed(0)
digits = bs.data.load("digits")
images, labels = digits.train.at(slice(None))

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


class Louder(nn.Module):
    """The same answers with a hundred times the confidence: in float32 the softmax underflows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The same logits, times 100."""
        return 100 * self.model(x)


for name, network in (("as trained", model), ("logits × 100", Louder(model))):
    found = bs.evaluate(network, digits, suite="quick", threat=bs.Linf(0.1), samples=200, name=name)
    print(
        f"{name}: PGD-20 leaves {found.robust_accuracy('PGD-20')} standing, on the margin loss "
        f"{found.robust_accuracy('PGD-20, margin loss')}; all-zero gradients: {found.zero_gradient_share('PGD-20')}"
    )
    for finding in found.findings:
        if finding.verdict == "doubt":
            print(f"  doubt ({finding.attack}): {finding.name}. {finding.meaning}")
