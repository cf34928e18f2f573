"""What every attack shares: a value that is called, and a model that comes back as it was.

An attack is a frozen dataclass of its settings. Its file holds `search`, which sees an `Oracle`: logits and input
gradients of a frozen model in evaluation mode, every question counted. Whether an attack succeeded is decided elsewhere
(`bessemer.evaluation`), by the model, on the images the attack returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer import randomness
from bessemer.attacks.inputs import check_images, check_labels, check_logits
from bessemer.errors import ModelError

Model = Callable[[Tensor], Tensor]
Images = Float[Tensor, "n *shape"]
Rows = Int[Tensor, " k"] | None  # places in the batch an attack was called with; None for all of them


@dataclass(frozen=True)
class Goal:
    """What the attacker wants: away from `labels`, or to `target` where one is given."""

    labels: Int[Tensor, " n"]
    target: Int[Tensor, " n"] | None = None

    def at(self, rows: Rows) -> Goal:
        """The goal for some of the images."""
        if rows is None:
            return self
        return Goal(self.labels[rows], None if self.target is None else self.target[rows])

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """Which images do what the attacker wants. NaN is no answer, so it reaches nothing."""
        prediction = logits.argmax(1)
        reached = prediction != self.labels if self.target is None else prediction == self.target
        return reached & ~logits.isnan().any(1)

    def cross_entropy(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The loss an attacker climbs: of the true label, or the negative loss of the target."""
        if self.target is None:
            return cross_entropy(logits, self.labels, reduction="none")
        return -cross_entropy(logits, self.target, reduction="none")

    def margin(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """How far the wanted class leads: above 0 exactly where the goal is reached. It cannot underflow."""
        wanted = self.labels if self.target is None else self.target
        own = logits.gather(1, wanted[:, None])[:, 0]
        other = logits.scatter(1, wanted[:, None], -torch.inf).amax(1)
        return other - own if self.target is None else own - other


LOSSES: dict[str, Callable[[Goal, Tensor], Tensor]] = {
    "cross-entropy": Goal.cross_entropy,
    "margin": Goal.margin,
}


class Oracle:
    """What an attack may ask of a model, and the count of what it asked, image by image.

    forwards, backwards, gradients, zero_gradients: int64 tensors of shape (N,): passes each image was part of, input
    gradients asked for, and how many of these were all zero in the model's own precision (looked for only when judging:
    a look makes a GPU wait).
    """

    def __init__(self, model: Model, images: Images, goal: Goal, judging: bool = True) -> None:
        self._model, self._goal, self._shape, self._judging = model, goal, images.shape, judging
        self.forwards, self.backwards, self.gradients, self.zero_gradients = torch.zeros(
            4, len(images), dtype=torch.int64, device=images.device
        )
        self._zero_at: Tensor | None = None
        self._objective: Callable[[Goal, Tensor], Tensor] | None = None
        self._answered = False

    def logits(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """The model's logits, without a gradient."""
        self._count(self.forwards, rows)
        with torch.no_grad():
            return self._ask(images, rows)

    def gradient(
        self,
        images: Images,
        objective: Callable[[Goal, Tensor], Tensor] = Goal.cross_entropy,
        rows: Rows = None,
    ) -> tuple[Images, Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """The gradient of each image's own objective at its pixels, the logits, and the objective.

        The objective is summed over the batch: a mean over 1,000 images underflows earlier.
        """
        self._count(self.forwards, rows)
        self._count(self.backwards, rows)
        self._count(self.gradients, rows)
        x = images.detach().requires_grad_()
        logits = self._ask(x, rows)
        values = objective(self._goal.at(rows), logits)
        gradient = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
        if gradient is None:
            raise ModelError(
                "the model's logits have no gradient at its images (a detach, a NumPy or an integer step inside?); "
                "attack it without gradients, or through a differentiable stand-in"
            )
        if self._judging:
            self._note_zeros(gradient, images, objective, rows)
        return gradient, logits.detach(), values.detach()

    def zero_in_float64(self) -> Float[Tensor, " n"]:
        """1 for images that met an all-zero gradient and get one in float64 as well, at that same point; 0 for others.

        Asked of a float64 copy of the model; NaN where it cannot be asked, because the model is no `nn.Module`, cannot
        be copied, or insists on float32 inside.
        """
        still = torch.zeros_like(self.zero_gradients, dtype=torch.float64)
        if self._zero_at is None or self._objective is None:
            return still
        rows = self.zero_gradients.nonzero()[:, 0]
        still[rows] = torch.nan
        if isinstance(self._model, nn.Module):
            x = self._zero_at[rows].double().requires_grad_()
            try:
                precise = deepcopy(self._model).double()
                (gradient,) = torch.autograd.grad(self._objective(self._goal.at(rows), precise(x)).sum(), x)
            except (RuntimeError, TypeError):
                return still
            still[rows] = _all_zero(gradient).double()
        return still

    def _ask(self, images: Tensor, rows: Rows) -> Tensor:
        logits = self._model(images)
        if not self._answered:
            goal = self._goal.at(rows)
            check_logits(logits, goal.labels)
            if goal.target is not None:
                check_logits(logits, goal.target)
            self._answered = True
        return logits

    @staticmethod
    def _count(counter: Tensor, rows: Rows) -> None:
        if rows is None:
            counter += 1
        else:
            counter[rows] += 1

    def _note_zeros(
        self, gradient: Tensor, images: Tensor, objective: Callable[[Goal, Tensor], Tensor], rows: Rows
    ) -> None:
        zero = _all_zero(gradient)
        if not zero.any():
            return
        if self._zero_at is None:
            self._zero_at, self._objective = images.new_zeros(self._shape), objective
        places = zero.nonzero()[:, 0] if rows is None else rows[zero]
        first = self.zero_gradients[places] == 0
        self._zero_at[places[first]] = images.detach()[zero][first]
        self.zero_gradients[places] += 1


def _all_zero(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    return (flat.amax(1) == 0) & (flat.amin(1) == 0)


class Worst:
    """The worst point seen so far for each image: misclassified before not, then by the objective.

    `until_success` closes an image once its goal is reached; `open` are the places still worth trying.
    """

    def __init__(self, images: Images, goal: Goal, until_success: bool) -> None:
        self.images = images.clone()
        self._goal, self._until_success = goal, until_success
        self._reached = torch.zeros_like(goal.labels, dtype=torch.bool)
        self._value = images.new_full((len(images),), -torch.inf)

    @property
    def open(self) -> Rows:
        """The places of images to go on with; None for all."""
        return (~self._reached).nonzero()[:, 0] if self._until_success else None

    def offer(self, images: Images, logits: Tensor, values: Tensor, rows: Rows = None) -> Bool[Tensor, " k"]:
        """Take in candidate points for some images; returns which of them reach the goal."""
        reached = self._goal.at(rows).reached(logits)
        held_reached = self._reached if rows is None else self._reached[rows]
        held_value = self._value if rows is None else self._value[rows]
        values = values.to(held_value.dtype)
        better = (reached & ~held_reached) | ((reached == held_reached) & (values > held_value))
        if rows is None:
            torch.where(_column(better, images), images, self.images, out=self.images)
            self._reached, self._value = reached | held_reached, torch.where(better, values, held_value)
        else:
            places = rows[better]
            self.images[places] = images[better]
            self._value[places] = values[better]
            self._reached[rows] = reached | held_reached
        return reached


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Outcome:
    """The images an attack returned, and what it asked of the model (see `Oracle`)."""

    images: Images
    forwards: Int[Tensor, " n"]
    backwards: Int[Tensor, " n"]
    gradients: Int[Tensor, " n"]
    zero_gradients: Int[Tensor, " n"]
    zero_in_float64: Float[Tensor, " n"]


@dataclass(frozen=True)
class Attack(ABC):
    """A way to change images so that a model gets them wrong.

    kind: `bounded` attacks return the worst point found in a ball, `minimal` ones the nearest misclassified point found
    (the original image where nothing was found), `random` ones a draw.
    """

    kind: ClassVar[str]

    def __call__(
        self,
        model: Model,
        images: Images,
        labels: Int[Tensor, " n"],
        *,
        target: Int[Tensor, " n"] | None = None,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
    ) -> Images:
        """Adversarial images, of the same shape, device and type as `images`.

        model: any callable from images (N, C, H, W) in [0, 1] to logits (N, classes). An `nn.Module` is attacked in
        evaluation mode and comes back exactly as it was (each module's mode, `requires_grad`, gradients, buffers,
        random state), also after an error.
        labels: the true classes; target: the classes to reach instead, where the attack is to be targeted.
        seed, index: random draws are keyed by both, and `index` (0, 1, 2, … unless given) is each image's place in its
        data set: splitting a batch changes nothing.

        Raises `ImagesError`, `LabelsError` or `ModelError` where one of them is not what it should be.
        """
        return self.run(model, images, labels, target=target, seed=seed, index=index).images

    def run(
        self,
        model: Model,
        images: Images,
        labels: Int[Tensor, " n"],
        *,
        target: Int[Tensor, " n"] | None = None,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
        until_success: bool = False,
    ) -> Outcome:
        """Like a call, with the count of what was asked of the model.

        until_success: an image leaves the batch as soon as it is misclassified, which spares most of the work where
        only verdicts count; and all-zero gradients are counted, and asked again in float64. Evaluation works this way,
        training never does.
        """
        check_images(images, self.box)
        check_labels(labels, images)
        if target is not None:
            check_labels(target, images, "targets")
        places = torch.arange(len(images), device=images.device) if index is None else index
        originals = images.detach()
        # what the caller made under inference_mode could not be part of a gradient
        if originals.is_inference():
            with torch.inference_mode(False):
                originals = originals.clone()
        goal = Goal(labels.long(), None if target is None else target.long())
        with torch.inference_mode(False), torch.enable_grad(), borrowed(model, images.device, seed):
            oracle = Oracle(model, originals, goal, judging=until_success)
            if not len(images):
                found = originals.clone()
            else:
                found = self.search(oracle, originals, goal, seed, places, until_success)
            in_float64 = oracle.zero_in_float64()
        return Outcome(
            found.detach(),
            oracle.forwards,
            oracle.backwards,
            oracle.gradients,
            oracle.zero_gradients,
            in_float64,
        )

    @property
    def box(self) -> tuple[float, float] | None:
        """Where legal pixels lie."""
        return (0.0, 1.0)

    @abstractmethod
    def search(
        self,
        oracle: Oracle,
        images: Images,
        goal: Goal,
        seed: int,
        index: Int[Tensor, " n"],
        until_success: bool,
    ) -> Images:
        """The attack itself; see `run`."""


@contextmanager
def borrowed(model: Model, device: torch.device, seed: int) -> Iterator[None]:
    """A model in evaluation mode with frozen weights, given back exactly as it was, also after an error.

    Inside, torch's global random numbers start from `seed`, so that a model that draws some does so repeatably.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in module.modules()]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # a model may write into its buffers, or put others in their place
    places = [(part, dict(part._buffers)) for part in module.modules()]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in module.buffers()]
    cuda = {tensor.device for tensor in (*module.parameters(), *module.buffers())} | {device}
    cuda = {place for place in cuda if place.type == "cuda"}
    with torch.random.fork_rng(devices=list(cuda)):
        try:
            _seed(randomness.subseed(seed, 7), cuda)
            module.eval()
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for parameter in parameters:
                parameter.requires_grad_(True)
            for part, before in places:
                part._buffers.update(before)
            with torch.no_grad():
                for buffer, content, version in buffers:
                    # an untouched buffer must stay untouched: the caller's own graph may have saved it
                    if buffer._version != version:
                        buffer.copy_(content)


def _seed(seed: int, cuda: set[torch.device]) -> None:
    """Seed the generators of the CPU and of some GPUs; `torch.manual_seed` would reach every other GPU too."""
    torch.default_generator.manual_seed(seed)
    for device in cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
