"""Is my own attack any good? An attack is a frozen dataclass with a `search`; the judging stays the evaluator's."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bessemer as bs
from bessemer import randomness
from bessemer.attacks import PGD, Attack, Goal, Oracle, losses
from bessemer.evaluation import Suite


@dataclass(frozen=True)
class RandomCorners(Attack):
    """Move every pixel by all that the ball allows, up or down at random; keep what leaves the smallest lead."""

    threat: bs.Linf
    draws: int = 50

    kind: ClassVar[str] = "bounded"

    def passes(self, classes: int) -> tuple[int, int]:
        """Forward and backward passes per image at most."""
        return self.draws + 1, 0

    def search(
        self, oracle: Oracle, images: Tensor, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Tensor:
        """Draws are keyed by seed and image, so that a batch may be split anywhere."""
        best, value = images, losses.margin(goal, oracle.logits(images))
        for draw in range(self.draws):
            chance = randomness.uniform(tuple(images.shape[1:]), randomness.subseed(seed, draw), index)
            candidate = self.threat.project(images + self.threat.eps * (chance - 0.5).sign(), images)
            found = losses.margin(goal, oracle.logits(candidate))
            best = torch.where((found > value).view(-1, 1, 1, 1), candidate, best)
            value = torch.maximum(found, value)
        return best


threat = bs.Linf(0.1)
mine = Suite("mine", {"corners": RandomCorners(threat), "PGD-20": PGD(threat, steps=20)})
torch.manual_seed(0)
digits = bs.data.load("digits")
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(digits.train.at(slice(None))[0]), digits.train.labels).backward()
    optimizer.step()

found = bs.evaluate(model, digits, suite=mine, samples=200)
for rows in found.attacks:
    print(
        f"{rows.name} leaves {found.robust_accuracy(rows.name)} of {len(found)} images standing, "
        f"after {rows['forwards'].sum():,} forward passes."
    )
