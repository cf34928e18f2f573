"""How robust is my model? Any `nn.Module` from images in [0, 1] to logits can be asked; the answer is one page."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bessemer as bs

torch.manual_seed(0)
digits = bs.data.load("digits")
images, labels = digits.train.at(slice(None))

# your own network: mean and deviation are its first layer, so a radius means the same thing everywhere
model = nn.Sequential(
    bs.models.Normalize(mean=0.3, std=0.38), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()

threat = bs.Linf(0.1)
evaluation = bs.evaluate(model, digits, suite="quick", threat=threat, name="my model")
doubts = [finding.name for finding in evaluation.findings if finding.verdict == "doubt"]
page = bs.report([evaluation], "how_robust.html")

print(f"{evaluation.clean_accuracy()} of {len(evaluation)} test images are classified correctly,")
print(f"{evaluation.worst_case()} still are when every pixel may move by {threat.eps:g} (the worst of all attacks).")
print(f"Reasons to doubt these figures: {', '.join(doubts) or 'none found'}. The page is {page}.")
