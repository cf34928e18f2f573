"""The judge does not trust the attacker.

An attack proposes images; the model itself, in evaluation mode and full precision, decides whether it was fooled, and
every bounded image is checked against its ball. What comes out is plain data, batch by batch.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bessemer import randomness
from bessemer.attacks import Attack, Outcome, borrowed, check_images, check_logits
from bessemer.attacks.attack import Model
from bessemer.attacks.wrapped import in_ball
from bessemer.errors import BessemerError, ModelError
from bessemer.evaluation.similarity import similarity
from bessemer.evaluation.suites import Suite
from bessemer.records import COLUMNS, NOT_TRIED, AttackRows, Exhibit
from bessemer.threat import L1, L2, Linf, Threat

COUNTED = ("forwards", "backwards", "verifications", "gradients", "zero_gradients", "zero_in_float64")
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Batch:
    """Images to judge, on the model's device, with their places in the data and what the model says unattacked."""

    number: int
    images: Tensor
    labels: Tensor
    index: Tensor
    prediction: Tensor

    @property
    def right(self) -> Tensor:
        """Which are classified correctly."""
        return self.prediction == self.labels


@dataclass(frozen=True)
class Part:
    """What one attack did to one batch. exhibits: of the images that were asked for; images: all of them, if kept."""

    rows: AttackRows
    exhibits: list[Exhibit]
    notes: dict[str, int]
    images: npt.NDArray[np.float32] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        record = {"rows": self.rows.to_json(), "exhibits": [exhibit.to_json() for exhibit in self.exhibits]}
        if self.images is not None:
            pixels = base64.b64encode(self.images.astype("<f4").tobytes()).decode()
            record["images"] = {"shape": list(self.images.shape), "floats": pixels}
        return {**record, "notes": self.notes}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Part:
        """The part that `to_json` described."""
        images = None
        if kept := record.get("images"):
            images = np.frombuffer(base64.b64decode(kept["floats"]), "<f4").reshape(kept["shape"])
        exhibits = [Exhibit.from_json(exhibit) for exhibit in record["exhibits"]]
        return cls(AttackRows.from_json(record["rows"]), exhibits, record["notes"], images)


class Judge:
    """One model under one suite.

    through: a cheaper copy of the model to search with, whose successes the model confirms. on_pass: called with a
    number of images after every pass, for progress.
    """

    def __init__(
        self, model: Model, suite: Suite, seed: int, through: Model | None, on_pass: Callable[[int], None]
    ) -> None:
        self.model, self.suite, self.seed = model, suite, seed
        self._on_pass = on_pass
        self._through = through and _telling(through, on_pass)

    def predict(self, images: Tensor, labels: Tensor, classes: int | None) -> tuple[Tensor, dict[str, int]]:
        """The logits of clean images, asked twice, and what was noticed.

        Raises `ModelError` where the model cannot answer.
        """
        before = images.clone()
        with torch.no_grad(), borrowed(self.model, images.device, self.seed):
            buffers = _buffers(self.model)
            with blamed(f"the model fails on images of shape {tuple(images.shape)}"):
                logits = self.model(images)
            changed = _buffers(self.model) != buffers
            check_logits(logits, labels, classes)
            if not torch.equal(images, before):
                raise ModelError(
                    "the model writes into the images it is given, so nothing can be measured on them; let it compute "
                    "on a copy (x - mean instead of x.sub_(mean))"
                )
            if broken := int(logits.isnan().any(1).sum()):
                raise ModelError(
                    f"the model returns NaN for {broken} of {len(logits)} unattacked images; look for a division, a "
                    "root or a logarithm that they drive out of its range"
                )
            again = self.model(images)
        changing = int((logits.argmax(1) != again.argmax(1)).sum())
        return logits, {"predictions_that_change": changing, "buffers_change": int(changed)}

    def attack(self, name: str, batch: Batch, standing: Tensor, shown: list[int], keep: bool) -> Part:
        """What an attack of the suite does to the images that are right (in a cascade: that stand).

        shown: places of images to exhibit; keep: whether to keep all of them.
        """
        attack = self.suite.attacks[name]
        tried = standing if self.suite.cascade else batch.right
        outcome, verdict, broken = self._attacked(attack, batch, tried)
        if self.suite.cascade:
            verdict = torch.where(batch.right & ~tried, NOT_TRIED, verdict)
        change = outcome.images - batch.images
        produced = (tried & (verdict != batch.labels)).cpu()
        scores = torch.full((len(batch.images),), torch.nan, dtype=torch.float64)
        notes = {"answers_not_a_number": broken}
        if self.suite.pass_scores:
            notes["pass_not_aligned"] = 0
            if produced.any():
                found = similarity(outcome.images.cpu()[produced], batch.images.cpu()[produced])
                scores[produced] = torch.as_tensor(found.scores, dtype=torch.float64)
                notes["pass_not_aligned"] = int(len(found.scores) - found.converged.sum())
        columns = {
            "prediction": verdict,
            "linf": Linf(0).size(change),
            "l2": L2(0).size(change),
            "l1": L1(0).size(change),
            "pass_score": scores,
            **{column: getattr(outcome, column) for column in COUNTED},
        }
        rows = AttackRows(
            name=name,
            attack=repr(attack),
            kind=attack.kind,
            threat=str(getattr(attack, "threat", None) or ""),
            columns={column: columns[column].cpu().numpy().astype(kind) for column, kind in COLUMNS.items()},
            norm=getattr(attack, "norm", "Linf") if attack.kind == "minimal" else "",
        )
        exhibits = [_exhibit(name, batch, place, outcome.images, verdict) for place in shown if tried[place]]
        return Part(rows, exhibits, notes, outcome.images.float().cpu().numpy() if keep else None)

    def curves(self, batch: Batch, united: str) -> dict[str, dict[float, int]]:
        """How many images stand at each radius, by attack, and under the union of all followed attacks.

        What fell at a smaller radius counts as fallen at every larger one.
        """
        followed: dict[str, Any] = {name: self.suite.attacks[name] for name in self.suite.curve}
        standing = {name: batch.right.clone() for name in followed}
        counts: dict[str, dict[float, int]] = {name: {} for name in (*followed, united)}
        for eps in radii(next(iter(followed.values())).threat):
            for name, attack in followed.items():
                if eps > 0 and standing[name].any():
                    wider = in_ball(attack, replace(attack.threat, eps=eps))
                    _, verdict, _ = self._attacked(wider, batch, standing[name])
                    standing[name] &= verdict == batch.labels
                counts[name][eps] = int(standing[name].sum())
            counts[united][eps] = int(torch.stack(list(standing.values())).all(0).sum())
        return counts

    def _attacked(self, attack: Attack, batch: Batch, tried: Tensor) -> tuple[Outcome, Tensor, int]:
        """The outcome for all images, the model's verdict on each, and how often it answered NaN."""
        rows = tried.nonzero()[:, 0]
        images, labels = batch.images[rows], batch.labels[rows]
        with _told(self.model, self._on_pass), blamed(f"{attack!r} stops"):
            part = self._run(attack, images, labels, batch.index[rows], room=len(batch.images))
        threat: Threat | None = getattr(attack, "threat", None)
        if threat is not None:
            threat.require(part.images, images)
        elif len(rows):
            check_images(part.images)
        full: dict[str, Tensor] = {"images": batch.images.clone()}
        for column in COUNTED:
            values: Tensor = getattr(part, column)
            full[column] = values.new_zeros(len(batch.images))
            full[column][rows] = values
        full["images"][rows] = part.images
        verdict, broken = batch.prediction.clone(), 0
        if len(rows):
            failing = blamed("the model fails on images that an attack returned")
            # a model that draws random numbers must not draw those that the attack has seen
            fresh = randomness.subseed(self.seed, 1)
            with torch.no_grad(), borrowed(self.model, images.device, fresh), failing:
                logits = self.model(part.images)
            # NaN is no answer: it is told, and not counted as a success of the attack
            nothing = logits.isnan().any(1)
            broken = int(nothing.sum())
            verdict[rows] = torch.where(nothing, labels, logits.argmax(1))
        return Outcome(**full), verdict, broken

    def _run(self, attack: Attack, images: Tensor, labels: Tensor, index: Tensor, room: int) -> Outcome:
        """The attack, with room for a whole batch; where a GPU's memory does not hold that, in halves."""
        try:
            return attack.run(
                self.model,
                images,
                labels,
                seed=self.seed,
                index=index,
                until_success=True,
                through=self._through,
                room=room,
            )
        except torch.cuda.OutOfMemoryError:
            if len(images) < 2 and room < 2:
                raise
        torch.cuda.empty_cache()
        half = len(images) // 2
        cuts = (slice(half), slice(half, None))
        parts = [self._run(attack, images[cut], labels[cut], index[cut], room // 2) for cut in cuts]
        return Outcome(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def radii(threat: Threat) -> list[float]:
    """Where a curve is measured: multiples of the threat's radius, and for Linf 0.5, which turns any image grey."""
    values = [0.0, *(multiple * threat.eps for multiple in MULTIPLES)]
    if isinstance(threat, Linf) and threat.box is not None:
        values = [value for value in values if value < 0.5 or value == threat.eps] + [0.5]
    return sorted(set(values))


def _exhibit(name: str, batch: Batch, place: int, found: Tensor, verdict: Tensor) -> Exhibit:
    original, adversarial = batch.images[place].cpu().numpy(), found[place].cpu().numpy()
    change = adversarial - original
    return Exhibit(
        attack=name,
        index=int(batch.index[place]),
        label=int(batch.labels[place]),
        prediction=int(batch.prediction[place]),
        adversarial_prediction=int(verdict[place]),
        linf=float(np.abs(change).max()),
        l2=float(np.sqrt((change**2).sum())),
        original=original.astype(np.float32),
        adversarial=adversarial.astype(np.float32),
    )


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Whatever a model's own code raises becomes a `ModelError` of one line."""
    try:
        yield
    except BessemerError:
        raise
    except Exception as problem:
        lines = str(problem).strip().splitlines() or ["without a word"]
        told = lines[-1] if "TorchScript" in lines[0] else lines[0]  # the interpreter says what happened at the end
        raise ModelError(
            f"{what}: {type(problem).__name__}: {told.removeprefix(f'{type(problem).__name__}: ')}"
        ) from problem


def _buffers(model: Model) -> list[tuple[int, int]]:
    """What differs once a module has written into a buffer, or put another in its place."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    return [(id(buffer), buffer._version) for buffer in module.buffers()]


@contextmanager
def _told(model: Model, on_pass: Callable[[int], None]) -> Iterator[None]:
    """A module tells of each forward pass; what is no module is not watched inside an attack."""
    if not isinstance(model, nn.Module):
        yield
        return
    handle = model.register_forward_hook(lambda module, inputs, output: on_pass(len(inputs[0])))
    try:
        yield
    finally:
        handle.remove()


def _telling(model: Model, on_pass: Callable[[int], None]) -> Model:
    def told(images: Tensor) -> Tensor:
        on_pass(len(images))
        return model(images)

    return told
