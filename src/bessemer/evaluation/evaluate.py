"""A verdict per image and attack. The judge does not trust the attacker.

An attack proposes images; the model itself, in evaluation mode, decides whether it was fooled, and every bounded image
is checked against its ball. Nothing is averaged here: summaries are computed from the rows (`bessemer.records`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bessemer import data as sources
from bessemer.arithmetic import exact, flushed
from bessemer.attacks import Attack, Outcome, borrowed, check_images, check_logits
from bessemer.attacks.attack import Model
from bessemer.data import Dataset, Split
from bessemer.errors import ModelError, UsageError
from bessemer.evaluation import suites
from bessemer.evaluation.masking import findings
from bessemer.evaluation.similarity import similarity
from bessemer.evaluation.suites import Suite
from bessemer.records import COLUMNS, AttackRows, Curve, Evaluation, Exhibit, provenance
from bessemer.threat import L1, L2, Linf, Threat

Pairs = Split | Dataset | tuple[Any, Any] | Iterable[tuple[Any, Any]]

CURVE_IMAGES = 500
EXHIBITS = 5  # images in the gallery, each of another class
GREY_LEVELS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Stage:
    """What an evaluation is at: which attack, and how many images of how many (0: not known) are done."""

    attack: str
    done: int
    total: int


@flushed()  # what is zero only because of that is told apart in float64
@exact()
def evaluate(
    model: Model,
    data: Pairs,
    suite: str | Suite = "quick",
    threat: Threat | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    classes: Iterable[str] = (),
    name: str = "model",
    watch: Callable[[Stage], None] = lambda stage: None,
) -> Evaluation:
    """Attack a model with every attack of a suite: rows, findings and provenance come back.

    model: any callable from images (N, C, H, W) in [0, 1] to logits (N, classes); an `nn.Module` is judged in
    evaluation mode and comes back as it was. data: a pair (images, labels) of tensors or arrays, a split, a data set
    (its test images), or any iterable of such pairs, read once, batch by batch. samples: only the first so many images.
    suite: a name (`bessemer list suites`), or a `bessemer.evaluation.Suite` of attacks of your own. threat: the ball of
    a named suite. classes: names for the report. seed: of the random starts.

    Verdicts are exact: float32, and the same for any `batch_size`.
    Raises `ImagesError`, `LabelsError`, `ModelError`, `ThreatError` or `UsageError` with what is wrong.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"samples should be at least 1, found {samples}")
    if batch_size < 1:
        raise UsageError(f"batch_size should be at least 1, found {batch_size}")
    chosen = suites.named(suite, threat) if isinstance(suite, str) else suite
    names = list(data.classes) if isinstance(data, Dataset) else list(classes)
    judge = _Judge(model, chosen, seed, len(names) or None, watch)
    began, total = time.monotonic(), _length(data, samples)
    for images, labels in _batches(data, samples, batch_size):
        judge.batch(images, labels, total)
    if not judge.count:
        raise UsageError("there are no images to evaluate")
    evaluation = Evaluation(
        model=name,
        data=data.name if isinstance(data, Dataset) else "",
        suite=chosen.name,
        threat=next((rows.threat for rows in judge.rows() if rows.threat), ""),
        seed=seed,
        classes=names or [str(label) for label in range(judge.classes)],
        index=np.arange(judge.count),
        label=np.concatenate(judge.labels),
        prediction=np.concatenate(judge.predictions),
        attacks=judge.rows(),
        curves=judge.curves(),
        gallery=judge.gallery,
        notes={
            "predictions_that_change": judge.changing,
            "answers_not_a_number": judge.not_a_number,
            **({"pass_not_aligned": judge.not_aligned} if chosen.pass_scores else {}),
        },
        provenance=provenance(
            seed=seed,
            seconds=round(time.monotonic() - began, 1),
            device=str(judge.device),
            threads=torch.get_num_threads(),
            samples=judge.count,
            batch_size=batch_size,
        ),
    )
    return replace(evaluation, findings=findings(evaluation))


class _Judge:
    """The rows of one evaluation as they grow, batch by batch."""

    def __init__(
        self, model: Model, suite: Suite, seed: int, classes: int | None, watch: Callable[[Stage], None]
    ) -> None:
        self.model, self.suite, self.seed, self.watch = model, suite, seed, watch
        weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device = None if weight is None else weight.device
        self.dtype = torch.float32 if weight is None else weight.dtype
        if self.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(f"the model's weights are {self.dtype}, but verdicts need full precision: model.float()")
        self.expected_classes, self.classes = classes, 0
        self.count = self.changing = self.not_aligned = self.not_a_number = 0
        self.labels: list[Any] = []
        self.predictions: list[Any] = []
        self.gallery: list[Exhibit] = []
        self._columns: dict[str, list[dict[str, Any]]] = {attack: [] for attack in suite.attacks}
        self._shown: set[int] = set()
        self._robust: dict[float, int] = {}
        self._followed = 0

    def batch(self, images: Tensor, labels: Tensor, total: int) -> None:
        """Judge one batch under every attack."""
        self.device = self.device or images.device
        images, labels = images.to(self.device, self.dtype), labels.to(self.device)
        index = torch.arange(self.count, self.count + len(images), device=self.device)
        prediction = self._predict(images, labels)
        exhibited = self._exhibited(labels, prediction)
        for name, attack in self.suite.attacks.items():
            self.watch(Stage(name, self.count, total))
            outcome, found_prediction = self._attacked(attack, images, labels, prediction, index)
            self._file(name, attack, images, labels, prediction, outcome, found_prediction)
            self._exhibit(name, exhibited, images, labels, prediction, outcome, found_prediction)
        if self.suite.curve and self._followed < CURVE_IMAGES:
            self.watch(Stage("curve", self.count, total))
            room = slice(0, CURVE_IMAGES - self._followed)
            self._follow(images[room], labels[room], prediction[room], index[room])
        self.count += len(images)
        self.labels.append(labels.cpu().numpy())
        self.predictions.append(prediction.cpu().numpy())
        self.watch(Stage("", self.count, total))

    def _predict(self, images: Tensor, labels: Tensor) -> Tensor:
        """The classes the model gives clean images, asked twice."""
        with torch.no_grad(), borrowed(self.model, images.device, self.seed):
            logits = self.model(images)
            check_logits(logits, labels, self.expected_classes)
            if broken := int(logits.isnan().any(1).sum()):
                raise ModelError(f"the model returns NaN for {broken} of {len(logits)} unattacked images")
            again = self.model(images)
        self.classes = logits.shape[1]
        self.changing += int((logits.argmax(1) != again.argmax(1)).sum())
        return logits.argmax(1)

    def _attacked(
        self, attack: Attack, images: Tensor, labels: Tensor, prediction: Tensor, index: Tensor
    ) -> tuple[Outcome, Tensor]:
        """The outcome for all images and the model's verdict on it; only those that are right need an attack."""
        right = (prediction == labels).nonzero()[:, 0]
        part = attack.run(
            self.model, images[right], labels[right], seed=self.seed, index=index[right], until_success=True
        )
        threat: Threat | None = getattr(attack, "threat", None)
        if threat is not None:
            threat.require(part.images, images[right])
        elif len(right):
            check_images(part.images)
        full: dict[str, Tensor] = {"images": images.clone()}
        for column in ("forwards", "backwards", "gradients", "zero_gradients", "zero_in_float64"):
            values: Tensor = getattr(part, column)
            full[column] = values.new_zeros(len(images))
            full[column][right] = values
        full["images"][right] = part.images
        verdict = prediction.clone()
        if len(right):
            with torch.no_grad(), borrowed(self.model, images.device, self.seed):
                logits = self.model(part.images)
            # NaN is no answer: it is told, and not counted as a success of the attack
            broken = logits.isnan().any(1)
            self.not_a_number += int(broken.sum())
            verdict[right] = torch.where(broken, labels[right], logits.argmax(1))
        return Outcome(**full), verdict

    def _file(
        self,
        name: str,
        attack: Attack,
        images: Tensor,
        labels: Tensor,
        prediction: Tensor,
        outcome: Outcome,
        verdict: Tensor,
    ) -> None:
        change = outcome.images - images
        produced = ((prediction == labels) & (verdict != labels)).cpu()
        scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
        if self.suite.pass_scores and produced.any():
            found = similarity(outcome.images.cpu()[produced], images.cpu()[produced])
            scores[produced] = torch.as_tensor(found.scores, dtype=torch.float64)
            self.not_aligned += int(len(found.scores) - found.converged.sum())
        self._columns[name].append(
            {
                "prediction": verdict,
                "linf": Linf(0).size(change),
                "l2": L2(0).size(change),
                "l1": L1(0).size(change),
                "pass_score": scores,
                **{
                    column: getattr(outcome, column)
                    for column in ("forwards", "backwards", "gradients", "zero_gradients", "zero_in_float64")
                },
            }
        )

    def _exhibited(self, labels: Tensor, prediction: Tensor) -> list[int]:
        """Places in this batch that go into the gallery: the first correctly classified image of each class."""
        places = []
        for place in (prediction == labels).nonzero()[:, 0].tolist():
            label = int(labels[place])
            if len(self._shown) < EXHIBITS and label not in self._shown:
                self._shown.add(label)
                places.append(place)
        return places

    def _exhibit(
        self,
        name: str,
        places: list[int],
        images: Tensor,
        labels: Tensor,
        prediction: Tensor,
        outcome: Outcome,
        verdict: Tensor,
    ) -> None:
        for place in places:
            original, adversarial = images[place].cpu().numpy(), outcome.images[place].cpu().numpy()
            change = adversarial - original
            self.gallery.append(
                Exhibit(
                    attack=name,
                    index=self.count + place,
                    label=int(labels[place]),
                    prediction=int(prediction[place]),
                    adversarial_prediction=int(verdict[place]),
                    linf=float(np.abs(change).max()),
                    l2=float(np.sqrt((change**2).sum())),
                    original=original.astype(np.float32),
                    adversarial=adversarial.astype(np.float32),
                )
            )

    def _follow(self, images: Tensor, labels: Tensor, prediction: Tensor, index: Tensor) -> None:
        """Robust accuracy over the radius: what fell at a smaller radius counts as fallen at every larger one."""
        attack: Any = self.suite.attacks[self.suite.curve]
        standing = prediction == labels
        for eps in radii(attack.threat):
            if eps > 0 and standing.any():
                wider = replace(attack, threat=replace(attack.threat, eps=eps))
                _, verdict = self._attacked(wider, images, labels, torch.where(standing, prediction, -1), index)
                standing &= verdict == labels
            self._robust[eps] = self._robust.get(eps, 0) + int(standing.sum())
        self._followed += len(images)

    def rows(self) -> list[AttackRows]:
        """What was filed, as columns."""
        return [
            AttackRows(
                name=name,
                attack=repr(attack),
                kind=attack.kind,
                threat=str(getattr(attack, "threat", None) or ""),
                columns={
                    column: np.concatenate([part[column].cpu().numpy().astype(kind) for part in self._columns[name]])
                    for column, kind in COLUMNS.items()
                },
            )
            for name, attack in self.suite.attacks.items()
        ]

    def curves(self) -> list[Curve]:
        """Robust accuracy over the radius: of the followed attack, or from the distances of minimal attacks."""
        if self._robust:
            followed: Any = self.suite.attacks[self.suite.curve]
            counts = list(self._robust.values())
            return [Curve(self.suite.curve, followed.threat.norm, list(self._robust), counts, self._followed)]
        labels, right = np.concatenate(self.labels), np.concatenate(self.predictions) == np.concatenate(self.labels)
        found = []
        for rows in self.rows():
            if rows.kind == "minimal":
                fallen = rows["prediction"] != labels
                eps = [0.0, *(level / 255 for level in GREY_LEVELS)]
                # distances in whole grey levels, as float32 has them
                robust = [int((right & ~(fallen & (rows["linf"] <= level + 1e-6))).sum()) for level in eps]
                found.append(Curve(rows.name, "Linf", eps, robust, len(labels)))
        return found


def radii(threat: Threat) -> list[float]:
    """Where a curve is measured: multiples of the threat's radius, and for Linf 0.5, which turns any image grey."""
    values = [0.0, *(multiple * threat.eps for multiple in MULTIPLES)]
    if isinstance(threat, Linf) and threat.box is not None:
        values = [value for value in values if value < 0.5 or value == threat.eps] + [0.5]
    return sorted(set(values))


def _length(data: Pairs, samples: int | None) -> int:
    """How many images there are to judge; 0 where only reading on will tell."""
    if isinstance(data, Dataset):
        data = data.test
    total = len(data) if isinstance(data, Split) else len(data[1]) if isinstance(data, tuple) else 0
    return min(total, samples) if samples is not None else total


def _batches(data: Pairs, samples: int | None, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The images as float batches on their own device, cut into pieces of at most `size`."""
    if isinstance(data, Dataset):
        data = data.test
    pairs: Iterable[Any] = [data] if isinstance(data, Split | tuple) else data
    left = samples
    for pair in pairs:
        split = pair if isinstance(pair, Split) else _split(pair)
        count = len(split) if left is None else min(left, len(split))
        for start in range(0, count, size):
            yield split.at(slice(start, min(start + size, count)))
        if left is not None:
            left -= count
            if left == 0:
                return


def _split(pair: Any) -> Split:
    try:
        images, labels = pair
    except (TypeError, ValueError):
        raise UsageError(
            f"data should be (images, labels), a data set, or an iterable of such pairs, not {type(pair).__name__}"
        ) from None
    return sources.from_pair(images, labels)
