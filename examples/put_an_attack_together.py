"""Which part of PGD does the work? An attack is goal, loss, start, step and schedule; change one at a time and see."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bessemer as bs
from bessemer.attacks import PGD, GradientAttack, parts
from bessemer.evaluation import Suite

threat = bs.Linf(0.08)
plain = PGD(threat, steps=10, random_start=False).composed  # the same attack, with its parts spelt out
print(plain, end="\n\n")


def lead_of_third(goal, logits):
    """A loss of your own: how far the third likeliest class leads the true one."""
    return logits.topk(3).values[:, -1] - logits.gather(1, goal.labels[:, None])[:, 0]


attacks: dict[str, GradientAttack] = {
    "as it is": plain,
    "on the margin loss": replace(plain, loss="margin"),
    "towards a random class": replace(plain, aim=parts.RandomClass()),
    "from a random corner": replace(plain, start=parts.Signs(share=1.0)),
    "with momentum": replace(plain, direction=parts.Momentum()),
    "with shrinking steps": replace(plain, step_size=parts.Cosine()),
    "on whole grey levels": replace(plain, projection=parts.GreyLevels()),
    "on a loss of my own": replace(plain, loss=lead_of_third),
}

torch.manual_seed(0)
digits = bs.data.load("digits")
images, labels = digits.train.at(slice(None))
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()

found = bs.evaluate(model, digits, suite=Suite("parts", dict(attacks)), samples=200)
for name in attacks:
    print(f"PGD-10 {name} leaves {found.robust_accuracy(name)} standing.")
