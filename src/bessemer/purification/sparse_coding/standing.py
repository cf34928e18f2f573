"""Which samples an attack leaves standing: labelled rightly before, and at the point that the attack returned.

The attack is not believed: its point must lie in the ball, and the model is asked again.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bessemer.attacks import FGSM, PGD, Attack
from bessemer.errors import BessemerError
from bessemer.evaluation import SUITES
from bessemer.purification.sparse_coding.data import SparseCoding
from bessemer.purification.sparse_coding.dense_direction import DenseDirection
from bessemer.threat import Threat

RESTARTS = 3
SLACK = 1e-5  # of the radius: what float32 may add to a projected point

Standing = Bool[Tensor, " n"]


def right(model: nn.Module, inputs: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Standing:
    """Which samples the model labels rightly, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(inputs).argmax(1) == labels


def after(
    attack: Attack, model: nn.Module, inputs: Float[Tensor, "n d"], labels: Int[Tensor, " n"], seed: int = 0
) -> Standing:
    """Which samples stand after one attack."""
    standing = right(model, inputs, labels)
    places = standing.nonzero()[:, 0]
    if len(places):
        found = attack.run(model, inputs[places], labels[places], seed=seed, index=places, until_success=True).images
        threat = getattr(attack, "threat", None)
        if isinstance(threat, Threat):
            size = threat.size((found - inputs[places]).double())
            if size.max() > threat.eps * (1 + SLACK):
                raise BessemerError(f"{attack} left its ball: {size.max().item():.6g}")
        standing[places] = right(model, found, labels[places])
    return standing


def attacks(source: SparseCoding, threat: Threat) -> dict[str, Attack]:
    """What every network of the laboratory meets: the universal direction, FGM, and PGD-50 with restarts."""
    return {
        "dense direction": DenseDirection(threat, source.dense_direction),
        "FGM": FGSM(threat),
        "PGD-50": PGD(threat, steps=50, restarts=RESTARTS, random_start=False),
    }


def after_standard(
    model: nn.Module, inputs: Float[Tensor, "n d"], labels: Int[Tensor, " n"], threat: Threat, standing: Standing
) -> Standing:
    """Of some samples that still stand, those that also stand after each attack of the suite `standard`."""
    boxed = Boxed(model, inputs, threat.eps)
    ball = type(threat)(threat.eps / boxed.width)
    standing = standing.clone()
    for attack in SUITES["standard"](ball).attacks.values():
        places = standing.nonzero()[:, 0]
        standing[places] = after(attack, boxed, boxed.pixels(inputs[places]), labels[places])
    return standing


class Boxed(nn.Module):
    """The model on inputs moved into [0, 1], for attacks that know pixels alone; no point in reach meets the box.

    width: by which distances are divided.
    """

    def __init__(self, model: nn.Module, inputs: Float[Tensor, "n d"], reach: float) -> None:
        super().__init__()
        self.model = model
        self.low = inputs.min().item() - 2 * reach
        self.width = inputs.max().item() + 2 * reach - self.low

    def pixels(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Where inputs lie in the box."""
        return (inputs - self.low) / self.width

    def forward(self, pixels: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """The model's logits."""
        return self.model(pixels * self.width + self.low)
