"""The Adversarial Robustness Toolbox (Nicolae et al., arXiv:1807.01069): evasion attacks, and classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bessemer.adapters.adapted import Foreign, Judged
from bessemer.attacks import Goal
from bessemer.attacks.attack import Images
from bessemer.errors import UsageError
from bessemer.threat import Threat

_NORMS = {inf: "Linf", "inf": "Linf", 2: "L2", 1: "L1", "2": "L2", "1": "L1"}
_LABEL_FORMATS = ("_reduce_labels", "_int_labels", "_probability_labels")


@dataclass(frozen=True, repr=False)
class Art(Foreign):
    """An evasion attack such as `art.attacks.evasion.ProjectedGradientDescent(classifier, eps=8/255)`.

    A copy of it attacks a `PyTorchClassifier` around the judged model, with the loss of the classifier it was built
    on, or cross-entropy where that has none. ART computes in float32.
    """

    library: ClassVar[str] = "art"

    def settings(self) -> dict[str, Any]:
        """Its `attack_params`."""
        missing = object()
        found = {name: getattr(self.attack, name, missing) for name in self.attack.attack_params}
        return {name: value for name, value in found.items() if value is not missing and name != "summary_writer"}

    def ball(self) -> tuple[str | None, float | None]:
        """Its `norm` and `eps`, where it has them and does not look for the smallest."""
        settings = self.settings()
        eps = None if settings.get("minimal") else settings.get("eps")
        return _NORMS.get(settings.get("norm", "")), None if eps is None else float(np.max(eps))

    def images(self, judged: Judged, images: Images, goal: Goal, threat: Threat | None, seed: int) -> Tensor:
        """One call of the copy, on arrays."""
        box = (0.0, 1.0) if threat is None else threat.box
        with torch.cuda.device_of(images):  # ART takes the current GPU
            twins = {id(old): _classifier(judged, images, old, box) for old in _estimators(self.attack)}
            twin = deepcopy(self.attack, twins)
            if goal.target is not None:
                if "targeted" not in twin.attack_params:
                    raise self.untargetable()
                twin.set_params(targeted=True)
            elif twin.targeted:
                raise UsageError(
                    f"{self.name} takes the labels for targets; build it with targeted=False, or give target"
                )
            wanted = goal.labels if goal.target is None else goal.target
            labels = nn.functional.one_hot(wanted, judged.classes).float()
            found = twin.generate(x=images.float().cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(np.asarray(found))


def _estimators(attack: Any) -> Iterator[Any]:
    """Every estimator that an attack holds, also those of attacks inside it."""
    estimator = import_module("art.estimators").BaseEstimator
    inner = import_module("art.attacks").EvasionAttack
    for held in vars(attack).values():
        for part in held if isinstance(held, list | tuple) else [held]:
            if isinstance(part, estimator):
                yield part
            elif isinstance(part, inner):
                yield from _estimators(part)


def _classifier(judged: Judged, images: Images, old: Any, box: tuple[float, float] | None) -> Any:
    """A classifier around the judged model, with the loss of another."""
    found = import_module("art.estimators.classification").PyTorchClassifier(
        model=judged,
        loss=getattr(old, "loss", nn.CrossEntropyLoss()),
        input_shape=tuple(images.shape[1:]),
        nb_classes=judged.classes,
        clip_values=box,
        preprocessing=None,
        device_type="gpu" if images.is_cuda else "cpu",
    )
    for flag in _LABEL_FORMATS:  # ART's own attacks set these by hand for losses of their own
        if hasattr(old, flag):
            setattr(found, flag, getattr(old, flag))
    return found


class ArtNet(nn.Module):
    """An ART classifier, from images in [0, 1] to logits.

    Its clip values are taken for the range of its images ([0, 1] where it has none). Gradients flow where all its
    preprocessing is torch's and nothing is done to its predictions; elsewhere it only answers.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator
        classes = import_module("art.estimators.classification")
        self.flows = (
            isinstance(estimator, classes.PyTorchClassifier)
            and estimator.all_framework_preprocessing
            and not estimator.postprocessing_defences
        )
        if isinstance(estimator, classes.PyTorchClassifier):
            self.net = estimator.model
        range_ = (0.0, 1.0) if estimator.clip_values is None else estimator.clip_values
        for name, bound in zip(("low", "high"), range_, strict=True):
            values = torch.as_tensor(np.asarray(bound, np.float32))
            self.register_buffer(name, values.reshape(estimator.input_shape) if values.numel() > 1 else values)

    low: Tensor
    high: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Into the classifier's range, through its preprocessing, through its network."""
        low, high = self.low.to(images), self.high.to(images)
        scaled = low + (high - low) * images
        if not self.flows:
            answer = self.estimator.predict(scaled.detach().float().cpu().numpy())
            return torch.from_numpy(np.asarray(answer)).to(images)
        prepared, _ = self.estimator._apply_preprocessing(scaled, y=None, fit=False, no_grad=False)
        return self.net(prepared)


def model(estimator: Any) -> nn.Module:
    """An ART classifier as a model."""
    return ArtNet(estimator)
