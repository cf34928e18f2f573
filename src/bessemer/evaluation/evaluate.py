"""One honest answer for any model: a verdict per image and attack, and what follows from them.

Images come in batches and leave as rows of plain data; nothing is averaged here (`bessemer.records` does, later). What
was found is kept as it comes, so that a killed evaluation goes on; under `torchrun` processes share the batches, and
every one of them returns the whole.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bessemer import processes
from bessemer.arithmetic import exact, flushed
from bessemer.attacks import Attack, EightBit
from bessemer.attacks.attack import Model, borrowed
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import margin
from bessemer.data import Dataset
from bessemer.errors import FileError, ModelError, UsageError
from bessemer.evaluation import checklist, masking, memory, sanity, stream, suites
from bessemer.evaluation.adversarial import clear, save_images
from bessemer.evaluation.cost import CURVE_IMAGES, estimate
from bessemer.evaluation.fast import cheaper
from bessemer.evaluation.found import Found, assembled, pictured
from bessemer.evaluation.journal import Journal
from bessemer.evaluation.judge import Batch, Judge, Part, blamed
from bessemer.evaluation.progress import Progress, Stage
from bessemer.evaluation.stream import Pairs
from bessemer.evaluation.suites import Suite
from bessemer.records import WORST, Evaluation, provenance
from bessemer.threat import Threat

VERSION = 2  # counts the ways in which attacks were carried out: what an older way found does not count
BATCHES = 8  # that an evaluation on a budget is cut into at least, so that it can stop in time


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
    batch_size: int | None = None,
    classes: Iterable[str] = (),
    name: str = "model",
    fast: bool = False,
    eight_bit: bool = False,
    budget: float | None = None,
    resume: str | Path | None = None,
    save_adversarial: str | Path | None = None,
    watch: Callable[[Stage], None] = lambda stage: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Evaluation:
    """Attack a model with every attack of a suite: rows, findings and provenance come back.

    model: any callable from images (N, C, H, W) in [0, 1] to logits (N, classes); an `nn.Module` is judged in
    evaluation mode and comes back as it was. data: a pair (images, labels) of tensors or arrays, a split, a data set
    (its test images), a DataLoader or any iterable of such pairs, read once, batch by batch. samples: only the first so
    many images. suite: a name (`bessemer list suites`), or a `bessemer.evaluation.Suite` of attacks of your own.
    threat: the ball of a named suite. classes: names for the report. seed: of the random starts. batch_size: as many
    images as half a GiB of activations allows, unless given.

    fast: search through a copy with folded batch norm in bfloat16; each success is confirmed by the model itself.
    eight_bit: only images that an 8-bit file can hold. budget: seconds; as many images are judged as fit.
    resume: a folder in which verdicts are kept as they come; called again with the same question, it goes on from
    there. save_adversarial: a folder for the images, as .npz files. say: told what was planned.

    Verdicts are exact unless `fast`: float32, and the same for any `batch_size`. Under `torch.distributed` the
    processes share the batches, and each returns the same whole.
    Raises `ImagesError`, `LabelsError`, `ModelError`, `ThreatError` or `UsageError` with what is wrong.
    """
    _check(samples, batch_size, budget)
    chosen = suites.named(suite, threat) if isinstance(suite, str) else suite
    if eight_bit:
        chosen = _on_grey_levels(chosen)
    names = list(data.classes) if isinstance(data, Dataset) else list(classes)
    began = time.monotonic()
    work = _Work(
        model,
        chosen,
        seed,
        names,
        fast=fast,
        batch_size=batch_size,
        budget=budget,
        resume=resume,
        folder=None if save_adversarial is None else Path(save_adversarial),
        watch=watch,
        say=say,
    )
    try:
        work.go_through(data, samples)
        found = processes.gathered(work.found)
    finally:
        work.close()
    if not found:
        raise UsageError("there are no images to evaluate")
    evaluation = assembled(
        found,
        chosen,
        model=name,
        data=data.name if isinstance(data, Dataset) else "",
        seed=seed,
        classes=names,
    )
    findings = [*sanity.findings(evaluation), *masking.findings(evaluation)]
    rank = {"doubt": 0, "note": 1, "trust": 2}
    return replace(
        evaluation,
        findings=sorted(findings, key=lambda finding: rank[finding.verdict]),
        provenance=provenance(
            seed=seed,
            seconds=round(time.monotonic() - began, 1),
            device=str(work.device),
            threads=torch.get_num_threads(),
            processes=processes.place()[1],
            samples=len(evaluation),
            batch_size=work.batch_size,
            mode=work.mode,
        ),
    )


@dataclass(frozen=True)
class _Plan:
    """What all processes of an evaluation go by. first: what tells the first images; journal: whether one is kept."""

    limit: int
    question: dict[str, Any]
    first: str
    journal: bool


class _Work:
    """One process's share of an evaluation, batch by batch."""

    def __init__(
        self,
        model: Model,
        suite: Suite,
        seed: int,
        names: list[str],
        *,
        fast: bool,
        batch_size: int | None,
        budget: float | None,
        resume: str | Path | None,
        folder: Path | None,
        watch: Callable[[Stage], None],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.suite, self.seed, self.names = model, suite, seed, names
        self.fast, self.batch_size, self.budget = fast, batch_size, budget
        self.resume, self.folder, self.watch, self.say = resume, folder, watch, say
        parts = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        self.device = parts[0].device if parts else None
        floats = [part.dtype for part in parts if part.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        for half in (torch.float16, torch.bfloat16):
            if half in floats:
                raise ModelError(f"the model's weights are {half}, but verdicts need full precision: model.float()")
        self.mode = "exact"
        self.found: list[Found] = []
        self._classes_shown: set[int] = set()
        self._began = time.monotonic()
        self._progress = Progress(suite, watch)
        self._journal = Journal(resume)

    def close(self) -> None:
        """Let go of what no other evaluation may use meanwhile."""
        self._journal.close()

    def go_through(self, data: Pairs, samples: int | None) -> None:
        """Judge this process's batches of all that come."""
        rank, world = processes.place()
        total = stream.length(data, samples)
        number = count = 0
        for split in stream.splits(data, samples):
            if not len(split):
                continue
            if not number:
                limit = self._prepare(*self._here(*split.at(slice(0, memory.LARGEST))), total)
                self._progress.total = min(total, limit) if total else 0
            assert self.batch_size is not None
            start = 0
            while start < len(split):
                size = min(self.batch_size, len(split) - start, limit - count)
                if not size or self._out_of_time(count, size):
                    return
                self._progress.done = count
                if number % world == rank:
                    images, labels = self._here(*split.at(slice(start, start + size)))
                    self.found.append(self._batch(number, count, images, labels))
                number, count, start = number + 1, count + size, start + size
            self._progress.done = count
            self._progress.tell("")

    def _out_of_time(self, done: int, size: int) -> bool:
        """Whether the next batch, at the speed so far, would end after the budget."""
        if self.budget is None or not done:
            return False
        spent = time.monotonic() - self._began
        if spent * (done + size) / done <= self.budget:
            return False
        self.say(f"the budget is used up after {done:,} images: they took {spent:.0f} s, longer than estimated")
        return True

    def _here(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.device = self.device or images.device
        return images.to(self.device, self.dtype), labels.to(self.device)

    def _prepare(self, images: Tensor, labels: Tensor, total: int) -> int:
        """Everything that needs a few images to be found out; returns how many images are to be judged at most."""
        self._judge = Judge(self.model, self.suite, self.seed, None, self._progress.passed)
        logits, _ = self._judge.predict(images[:8], labels[:8], len(self.names) or None)
        few = images[:8], labels[:8]
        self._progress.classes = logits.shape[1]
        asked, first = self.batch_size, _own(0, images, labels)
        if self.batch_size is None:
            with blamed("the model fails where a gradient is asked for"):
                self.batch_size = memory.batch_size(self.model, images)
        images, labels = images[: self.batch_size], labels[: self.batch_size]
        cheap: Model | None = None
        if self.fast:
            cheap, done = cheaper(self.model, images)
            self.mode = f"fast: {done}"
            self._judge = Judge(self.model, self.suite, self.seed, cheap, self._progress.passed)
        # memory and speed are measured, by each process for itself: all go by what the first one found
        question = self._question(logits, *few)
        plan = processes.agreed(lambda: self._plan(images, labels, total, cheap, asked, question, first))
        if plan.first != first:
            raise UsageError(
                "the processes see different images; give each the same ones in the same order, unshuffled"
            )
        self.batch_size = plan.question["batch_size"]
        if plan.journal:
            self._journal.ask(plan.question)
        return plan.limit

    def _plan(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        cheap: Model | None,
        asked: int | None,
        question: dict[str, Any],
        first: str,
    ) -> _Plan:
        """How many images to judge, and how many at once; begins the journal."""
        limit = 2**62
        if self.budget is not None:
            world = processes.place()[1]
            with blamed("the model fails where a gradient is asked for"):
                cost = estimate(self.model, self.suite, images, labels, cheap)
            limit = cost.images_within(self.budget * world)
            judged = min(limit, total) if total else limit
            question["batch_size"] = min(question["batch_size"], max(1, judged // BATCHES))
            images_ = f"{judged:,} of {total:,} images" if total else f"{judged:,} images"
            self.say(
                f"{self.suite.name} takes about {cost.of(judged) / judged:.2g} s an image here if none falls early: "
                f"{images_}, about {cost.of(judged) / world:.0f} s"
            )
        try:
            nameless = next(_nameless(tuple(self.suite.attacks.values())), "")
            if nameless and self.resume is not None:
                raise FileError(f"an attack holds the function {nameless}, which no name tells from others")
            before = self._journal.open()
            # what was measured differs from call to call, and shall not cost what was found
            measured = self.budget is not None or asked is None
            size = before.get("batch_size", 0)
            if measured and before == {**question, "batch_size": size} and size <= (asked or size):
                question = before
            self._journal.ask(question)
            kept = True
        except FileError as problem:
            self.say(f"{problem}; what is found is not kept on the way")
            kept = False
        if self.folder is not None:
            clear(self.folder)
        return _Plan(limit, question, first, kept)

    def _question(self, logits: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """What must agree for verdicts of an earlier call to count."""
        digest = hashlib.sha256(logits.cpu().numpy().tobytes())
        if self.resume is not None:
            for module in _modules((self.model, *self.suite.attacks.values())):
                for key, value in sorted(module.state_dict().items()):
                    digest.update(key.encode())
                    digest.update(_content(value))
        return {
            "version": f"{VERSION} {version('bessemer')} {torch.__version__}",
            "device": str(logits.device.type),
            "model": digest.hexdigest(),
            "slopes": self._slopes(images, labels) if self.resume is not None else [],
            "attacks": {key: repr(attack) for key, attack in self.suite.attacks.items()},
            "cascade": self.suite.cascade,
            "pass_scores": self.suite.pass_scores,
            "curve": list(self.suite.curve),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "mode": self.mode,
            "saved": self.folder is not None,
        }

    def _slopes(self, images: Tensor, labels: Tensor) -> list[str]:
        """How steep the model is at each image, in two digits: a mended gradient may be all that is new of a model."""
        x = images.detach().requires_grad_()
        try:
            with borrowed(self.model, images.device, self.seed):
                (gradient,) = torch.autograd.grad(margin(Goal(labels), self.model(x)).sum(), x)
        except Exception:  # a model without gradients may be asked all the same
            return []
        return [f"{length:.1e}" for length in gradient.flatten(1).norm(dim=1).tolist()]

    def _batch(self, number: int, place: int, images: Tensor, labels: Tensor) -> Found:
        """All that is to be found about one batch; what the journal holds is not found again."""
        digests, own_labels, own = sanity.digests(images), labels.tolist(), _own(place, images, labels)
        clean = self._journal.recall(number, "clean", own)
        if clean is None:
            clean = self._clean(number, images, labels)
            self._journal.keep(number, "clean", own, clean)
        index = torch.arange(place, place + len(images), device=images.device)
        prediction = torch.tensor(clean["prediction"], device=images.device)
        batch = Batch(number, images, labels, index, prediction)
        shown = pictured(place, own_labels, clean["prediction"], self._classes_shown)
        standing = batch.right.clone()
        bounded = any(getattr(attack, "threat", None) is not None for attack in self.suite.attacks.values())
        parts: list[Part] = []
        for position, name in enumerate(self.suite.attacks):
            self._progress.begin(name, int(standing.sum()), len(images))
            kept = self._journal.recall(number, f"attack-{position:02d}", own)
            if kept is not None:
                part = Part.from_json(kept)
            else:
                part = self._judge.attack(name, batch, standing, shown, keep=self.folder is not None)
                self._journal.keep(number, f"attack-{position:02d}", own, part.to_json())
            parts.append(part)
            if part.rows.threat or not bounded:
                right = part.rows["prediction"] == np.array(own_labels)
                standing &= torch.from_numpy(right).to(standing.device)
            self._progress.finish(name)
        self._progress.stand(int(standing.sum()), len(images))
        if self.folder is not None:
            save_images(self.folder, batch, parts)
            parts = [replace(part, images=None) for part in parts]  # memory shall not grow with the number of images
        curves, followed = self._curves(number, place, batch, own)
        notes = {key: clean[key] for key in ("classes", "counted", "preprocessing", "another_answer")}
        return Found(number, place, own_labels, clean["prediction"], digests, notes, parts, curves, followed)

    def _clean(self, number: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """What the model says of images that nobody attacks."""
        logits, counted = self._judge.predict(images, labels, len(self.names) or None)
        seen = {} if number else sanity.preprocessing(self.model, images, labels, self.seed)
        prediction = logits.argmax(1).tolist()
        return {
            "prediction": prediction,
            "classes": logits.shape[1],
            "counted": counted,
            "preprocessing": seen,
            "another_answer": {} if number else checklist.another_answer(images, labels, logits.argmax(1)),
        }

    def _curves(self, number: int, place: int, batch: Batch, own: str) -> tuple[dict[str, dict[float, int]], int]:
        """How many of the first images stand at each radius, and how many images these are."""
        few = max(0, min(CURVE_IMAGES - place, len(batch.images)))
        if not self.suite.curve or not few:
            return {}, 0
        kept = self._journal.recall(number, "curves", own)
        if kept is None:
            self._progress.tell("curve")
            room = slice(0, few)
            part = replace(
                batch,
                images=batch.images[room],
                labels=batch.labels[room],
                index=batch.index[room],
                prediction=batch.prediction[room],
            )
            found = self._judge.curves(part, WORST)
            kept = {name: list(map(list, curve.items())) for name, curve in found.items()}
            self._journal.keep(number, "curves", own, kept)
        return {name: {float(eps): int(count) for eps, count in curve} for name, curve in kept.items()}, few


def _own(place: int, images: Tensor, labels: Tensor) -> str:
    """What tells these images with these labels, at this place of the data, from all others."""
    return hashlib.sha256(json.dumps([place, sanity.digests(images), labels.tolist()]).encode()).hexdigest()


def _modules(held: Any) -> Iterator[nn.Module]:
    """Models, and those that attacks hold: what they search on may be another one."""
    if isinstance(held, nn.Module):
        yield held
    elif isinstance(held, tuple):
        for each in held:
            yield from _modules(each)
    elif isinstance(held, Attack):
        yield from _modules(tuple(vars(held).values()))


def _nameless(held: Any) -> Iterator[str]:
    """Functions that attacks hold and that could be others tomorrow: made inside others, or by `lambda`."""
    if isinstance(held, tuple):
        for each in held:
            yield from _nameless(each)
    elif isinstance(held, Attack):
        yield from _nameless(tuple(vars(held).values()))
    elif callable(held) and not isinstance(held, nn.Module) and not is_dataclass(held):
        name = getattr(held, "__qualname__", f"{type(held).__name__}()")
        if not name.isidentifier():
            yield name


def _content(value: Any) -> bytes:
    """What tells an entry of a state dict from another; most are tensors."""
    if not isinstance(value, Tensor) or value.is_quantized or value.layout != torch.strided:
        return repr(value).encode()
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _on_grey_levels(suite: Suite) -> Suite:
    """The suite with every attack confined to 8-bit images. Only a ball can be: what has none is refused."""
    if free := [name for name, attack in suite.attacks.items() if getattr(attack, "threat", None) is None]:
        raise UsageError(
            f"eight_bit works on attacks with a radius, but {', '.join(free)} of the suite {suite.name} has none; "
            "take another suite, such as quick or standard"
        )
    return replace(
        suite, name=f"{suite.name}-8bit", attacks={name: EightBit(attack) for name, attack in suite.attacks.items()}
    )


def _check(samples: int | None, batch_size: int | None, budget: float | None) -> None:
    if samples is not None and samples < 1:
        raise UsageError(f"samples should be at least 1, found {samples}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size should be at least 1, found {batch_size}")
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"budget should be some seconds, found {budget}")
