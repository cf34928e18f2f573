"""DeepFool: step onto the nearest class boundary of the linearised model, until the boundary is crossed.

With own class y, logits f and q the dual norm of p, each step takes the class whose linearised boundary is nearest

    w_k = ∇f_k(x_i) − ∇f_y(x_i),    l = argmin_k |f_k(x_i) − f_y(x_i)| / ‖w_k‖_q
    r   ← r + |f_l(x_i) − f_y(x_i)| / ‖w_l‖_q · steepest_p(w_l),    x_{i+1} = clip(x_0 + (1 + overshoot) r)

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", 2016,
algorithm 2 and, for other norms, section 3.3; as in the authors' code, the overshoot is applied at every step.
Ours are the clipping and the end: the overshoot makes distances too long, so the segment from the last point that the
model got right is bisected. On a linear model whose box is inactive the distance is exact to a thousandth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.segment import HALVINGS, bisect
from bessemer.errors import UsageError, unknown
from bessemer.threat import THREATS, Threat

NORMS = ("L2", "Linf")
NUDGE = 1e-4  # added to each step, in pixels, as by the authors: two equal logits are at distance 0


@dataclass(frozen=True)
class DeepFool(Attack):
    """The nearest misclassified image, by linearising the model at each step.

    norm: `L2` or `Linf`. candidates: only so many of the likeliest classes are looked at, the own one included; each
    costs a backward pass a step. Images that are misclassified to begin with, and those for which nothing was found,
    come back as they are. Raises `UsageError` for settings that cannot be, and for a target: the nearest boundary is
    taken, whichever class lies behind it.
    """

    norm: str = "L2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.steps < 1 or self.candidates < 2:
            raise UsageError(
                f"DeepFool needs at least 1 step and 2 candidates, found {self.steps} and {self.candidates}"
            )
        if not 0 < self.overshoot < float("inf"):
            raise UsageError(f"DeepFool crosses no boundary without an overshoot above 0, found {self.overshoot}")

    def passes(self, classes: int) -> tuple[int, int]:
        """A look and a gradient per candidate at each step, then the bisection."""
        return 1 + 2 * self.steps + HALVINGS, self.steps * min(self.candidates, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Step by step, with the images that the model still gets right."""
        if goal.target is not None:
            raise UsageError("DeepFool takes the nearest boundary, whichever class lies behind it: it takes no target")
        threat = THREATS[self.norm](0.0)
        nearest = NearestSeen(oracle, images, threat.size)
        logits = oracle.logits(images)
        rows = (~nearest.offer(images, logits)).nonzero()[:, 0]
        own_first = logits.scatter(1, goal.labels[:, None], torch.inf)
        classes = own_first.topk(min(self.candidates, logits.shape[1]), dim=1).indices
        right, change = images.clone(), torch.zeros_like(images)
        for _ in range(self.steps):
            if not len(rows):
                break
            step = _onto_nearest_boundary(oracle, threat, right[rows], rows, classes[rows])
            change[rows] += step
            x = (images[rows] + (1 + self.overshoot) * change[rows]).clamp(0, 1)
            reached = nearest.offer(x, oracle.logits(x, rows), rows)
            right[rows[~reached]] = x[~reached]
            rows = rows[~reached & step.flatten(1).any(1)]
        bisect(oracle, nearest, right)
        return nearest.images


def _onto_nearest_boundary(oracle: Oracle, threat: Threat, x: Images, rows: Tensor, classes: Tensor) -> Images:
    """The shortest step onto a linearised boundary between the first class and another; 0 where there is none."""
    gradients, logits = oracle.jacobian(x, rows, classes)
    # a cheaper copy of the model may see the boundary crossed before the model does: then on, and not back
    lead = (logits.gather(1, classes[:, :1]) - logits.gather(1, classes[:, 1:])).abs()
    normal = gradients[:, 1:] - gradients[:, :1]
    direction = threat.steepest(normal.flatten(0, 1)).view_as(normal)
    dual = (normal * direction).flatten(2).sum(2)
    # a class that does not come nearer in any direction is infinitely far away
    distance, place = torch.where(dual > 0, lead / dual, torch.inf).min(1)
    step = column(distance + NUDGE, x) * direction[torch.arange(len(x), device=x.device), place]
    return step.where(column(distance.isfinite(), x), 0.0)
