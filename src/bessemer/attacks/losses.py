"""What an attack climbs: a function of the goal and the logits, one value per image.

A loss of your own is any such function: `PGD(threat, loss=lambda goal, logits: logits.logsumexp(1))`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bessemer.attacks.goal import Goal
from bessemer.errors import UsageError, unknown

Loss = Callable[[Goal, Float[Tensor, "n k"]], Float[Tensor, " n"]]


def cross_entropy(goal: Goal, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Of the true label, or minus that of the target. Its gradient underflows where the model is very confident."""
    if goal.target is None:
        return functional.cross_entropy(logits, goal.labels, reduction="none")
    return -functional.cross_entropy(logits, goal.target, reduction="none")


def margin(goal: Goal, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """How far the wanted class leads: above 0 exactly where the goal is reached. It cannot underflow.

    Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017, f_6. Its size grows with the
    logits': it is scale-free only through a sign or a normalised step.
    """
    wanted = goal.labels if goal.target is None else goal.target
    own = logits.gather(1, wanted[:, None])[:, 0]
    other = logits.scatter(1, wanted[:, None], -torch.inf).amax(1)
    return other - own if goal.target is None else own - other


def dlr(goal: Goal, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The difference of logits ratio: a margin that neither scale nor shift of the logits changes.

    Untargeted −(z_y − max_{i≠y} z_i) / (z_(1) − z_(3)), targeted −(z_y − z_t) / (z_(1) − (z_(3) + z_(4)) / 2), with
    z_(1) ≥ z_(2) ≥ … the sorted logits (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble
    of diverse parameter-free attacks", 2020, equations 6 and 7). With fewer classes than it needs (3, targeted 4), it
    is the margin; `remarks` says so.
    """
    targeted = goal.target is not None
    if logits.shape[1] < DLR_CLASSES[targeted]:
        return margin(goal, logits)
    ordered = logits.topk(4 if targeted else 3, dim=1).values
    own = logits.gather(1, goal.labels[:, None])[:, 0]
    if goal.target is None:
        other = logits.scatter(1, goal.labels[:, None], -torch.inf).amax(1)
        spread = ordered[:, 0] - ordered[:, 2]
    else:
        other = logits.gather(1, goal.target[:, None])[:, 0]
        spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return (other - own) / (spread + 1e-12)


DLR_CLASSES = {False: 3, True: 4}
LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}


def named(loss: str | Loss) -> Loss:
    """The loss of that name, or the function itself. Raises `UsageError`."""
    if callable(loss):
        return loss
    if not isinstance(loss, str):
        raise UsageError(f"a loss is a name or a function (goal, logits) -> values, not {type(loss).__name__}")
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]


def remarks(loss: str | Loss, classes: int, targeted: bool = False) -> list[str]:
    """What a reader should know about a loss on a model of so many classes."""
    needed = DLR_CLASSES[targeted]
    if loss in ("dlr", dlr) and classes < needed:
        kind = "targeted DLR" if targeted else "DLR"
        return [f"{kind} needs {needed} classes, the model has {classes}: the margin loss took its place"]
    return []
