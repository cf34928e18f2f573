"""What every attack shares: a value that is called, and a model that comes back as it was.

An attack is a frozen dataclass of its settings. Its file holds `search`, which sees an `Oracle`: logits and input
gradients of a frozen model in evaluation mode, every question counted. Whether an attack succeeded is decided elsewhere
(`bessemer.evaluation`), by the model, on the images the attack returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bessemer import randomness
from bessemer.attacks.goal import Goal, Rows
from bessemer.attacks.inputs import check_images, check_labels, check_logits
from bessemer.attacks.losses import Loss, cross_entropy, margin
from bessemer.errors import ModelError

Model = Callable[[Tensor], Tensor]
Images = Float[Tensor, "n *shape"]


class Oracle:
    """What an attack may ask of a model, and the count of what it asked, image by image.

    through: a cheaper copy of the model to search with, where the engine has one (see `Attack.run`); what counts is
    still the model itself, which `reached` asks before it believes a success. room: how many images a question may be
    about, which those may use who have several questions about each; as many as there are, unless given.
    forwards, backwards, verifications, gradients, zero_gradients: int64 tensors of shape (N,): passes each image was
    part of, forward passes of the model itself that confirmed a success of a cheaper copy, input gradients asked for,
    and how many of these were all zero in the model's own precision (looked for only when judging: a look makes a GPU
    wait).
    """

    def __init__(
        self,
        model: Model,
        images: Images,
        goal: Goal,
        judging: bool = True,
        through: Model | None = None,
        room: int | None = None,
    ) -> None:
        self._model, self._through, self._goal, self._judging = model, through, goal, judging
        self.room = len(images) if room is None else room
        counters = torch.zeros(5, len(images), dtype=torch.int64, device=images.device)
        self.forwards, self.backwards, self.verifications, self.gradients, self.zero_gradients = counters
        self._zeros: list[tuple[Tensor, Tensor, Goal, Loss]] = []
        self._answered = False

    def asking(self, model: Model | None = None, through: Model | None = None) -> Oracle:
        """The same questions, put to another model, or to this one through another stand-in; counted here all the same.

        An all-zero gradient found there is counted, but cannot be asked again in float64.
        """
        other = copy(self)
        other._model, other._through = self._model if model is None else model, through
        other._zeros, other._answered = [], False
        return other

    def beside(self, images: int) -> int:
        """How many questions about each of so many images there is room for at once; always one."""
        return max(1, self.room // max(1, images))

    def classes(self, images: Images) -> int:
        """How many classes the model tells apart; it is asked about one image, which does not count as a pass."""
        with torch.no_grad():
            logits = self._ask(images[:1], torch.zeros(1, dtype=torch.int64, device=images.device))
        self._answered = False  # the answers to a whole batch say more about the model than one
        return logits.shape[1]

    def logits(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """The model's logits, without a gradient."""
        self._count(self.forwards, rows)
        with torch.no_grad():
            return self._ask(images, rows)

    def gradient(
        self, images: Images, loss: Loss = cross_entropy, rows: Rows = None, goal: Goal | None = None
    ) -> tuple[Images, Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """The gradient of each image's own loss at its pixels, the logits, and the loss.

        goal: another one than the attack was called with, of these very images. The loss is summed over the images: a
        mean over 1,000 of them underflows earlier. A pixel whose slope is NaN has slope 0: nothing is known of it.
        Under float16 autocast the loss is scaled on the way back, and the gradient set right again.
        """
        self._count(self.forwards, rows)
        self._count(self.backwards, rows)
        wanted = self._goal.at(rows) if goal is None else goal
        x = images.detach().requires_grad_()
        logits = self._ask(x, rows)
        values = loss(wanted, logits)
        scale = _scale(x)
        total = values.sum() if scale == 1 else values.sum() * scale
        gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if values.requires_grad else None
        if gradient is None:
            raise _no_gradient()
        if scale != 1:
            gradient = gradient / scale
        self._note_gradient(gradient, x.detach(), wanted, loss, rows)
        return _numbers(gradient), logits.detach(), values.detach()

    def jacobian(
        self, images: Images, rows: Rows = None, classes: Int[Tensor, "n c"] | None = None
    ) -> tuple[Float[Tensor, "n c *shape"], Float[Tensor, "n k"]]:
        """The gradients of logits at each image's pixels, and the logits: one forward pass, a backward pass a class.

        classes: which logits, image by image; all of them, in order, unless given. NaN is as for `gradient`.
        """
        self._count(self.forwards, rows)
        x = images.detach().requires_grad_()
        logits = self._ask(x, rows)
        if classes is None:
            classes = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        gradients: list[Tensor] = []
        for chosen in classes.unbind(1):
            self._count(self.backwards, rows)
            total = logits.gather(1, chosen[:, None]).sum()
            last = len(gradients) == classes.shape[1] - 1
            one = (
                torch.autograd.grad(total, x, retain_graph=not last, allow_unused=True)[0]
                if total.requires_grad
                else None
            )
            if one is None:
                raise _no_gradient()
            gradients.append(one)
        stacked = torch.stack(gradients, 1)
        self._note_gradient(stacked, x.detach(), self._goal.at(rows), margin, rows)
        return _numbers(stacked), logits.detach()

    def reached(
        self,
        images: Images,
        logits: Float[Tensor, "n k"],
        rows: Rows = None,
        confirmed: Bool[Tensor, " n"] | None = None,
    ) -> Bool[Tensor, " n"]:
        """Which images do what the attacker wants; where the search used a cheaper copy, the model itself says so.

        confirmed: images of which it has said so at another point; they are not asked about again.
        """
        reached = self._goal.at(rows).reached(logits)
        if self._through is not None and reached.any():
            places = (reached if confirmed is None else reached & ~confirmed).nonzero()[:, 0]
            asked = places if rows is None else rows[places]
            reached[places] = self._goal.at(asked).reached(self.verdict(images[places], asked))
        return reached

    def fooled(self, images: Images, rows: Rows = None) -> Bool[Tensor, " n"]:
        """Which images do what the attacker wants, as the model itself says.

        For points that were not found through the cheaper copy: on a boundary of the model's that copy says anything.
        """
        logits = self.verdict(images, rows) if self.indirect else self.logits(images, rows)
        return self._goal.at(rows).reached(logits)

    @property
    def indirect(self) -> bool:
        """Whether a cheaper copy answers in place of the model."""
        return self._through is not None

    def verdict(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """The logits of the model itself, also where the search goes through a stand-in."""
        self._count(self.verifications, rows)
        with torch.no_grad():
            return _untouched(self._model, images)

    def zero_in_float64(self) -> Float[Tensor, " n"]:
        """1 for images that met an all-zero gradient and get one in float64 as well, at that same point; 0 for others.

        Asked of a float64 copy of the model; NaN where it cannot be asked, because the model is no `nn.Module`, cannot
        be copied, or insists on float32 inside.
        """
        still = torch.zeros_like(self.zero_gradients, dtype=torch.float64)
        still = still.masked_fill(self.zero_gradients > 0, torch.nan)
        if self._zeros and isinstance(self._model, nn.Module):
            try:
                precise = deepcopy(self._model).double()
                for places, images, goal, loss in self._zeros:
                    x = images.double().requires_grad_()
                    (gradient,) = torch.autograd.grad(loss(goal, precise(x)).sum(), x)
                    still[places] = _all_zero(gradient).double()
            except Exception:  # the model's own code, which nobody has asked in float64 before
                still = still.masked_fill(self.zero_gradients > 0, torch.nan)
        return still

    def count(self, forwards: Int[Tensor, " k"], backwards: Int[Tensor, " k"], rows: Int[Tensor, " k"]) -> None:
        """Add passes that some images were part of, asked by somebody else than this oracle."""
        self.forwards.index_add_(0, rows, forwards)
        self.backwards.index_add_(0, rows, backwards)

    def _ask(self, images: Tensor, rows: Rows) -> Tensor:
        logits = _untouched(self._through or self._model, images)
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
            counter.index_add_(0, rows, torch.ones_like(rows))  # an image may stand in a batch several times

    def _note_gradient(self, gradient: Tensor, images: Tensor, goal: Goal, loss: Loss, rows: Rows) -> None:
        self._count(self.gradients, rows)
        if not self._judging:
            return
        zero = _all_zero(gradient)
        if not zero.any():
            return
        places = zero.nonzero()[:, 0] if rows is None else rows[zero]
        # an image may stand in a batch several times: of several points the first is looked at again
        order = torch.arange(len(places), device=places.device)
        earliest = torch.full_like(self.zero_gradients, len(places)).scatter_reduce_(0, places, order, "amin")
        first = (self.zero_gradients[places] == 0) & (earliest[places] == order)
        if first.any():
            here = zero.nonzero()[:, 0][first]
            self._zeros.append((places[first], images[here], goal.at(here), loss))
        self._count(self.zero_gradients, places)


def _untouched(model: Model, images: Tensor) -> Tensor:
    """The model's logits. Raises `ModelError` where it wrote into the images: the attack would go on from these."""
    version = images._version
    logits = model(images)
    if images._version != version:
        raise ModelError("the model writes into the images it is given; write x = x - mean in it, not x -= mean")
    return logits


def _no_gradient() -> ModelError:
    return ModelError(
        "the model's logits have no gradient at its images (a detach, a NumPy or an integer step inside?); "
        "attack it without gradients, or through a differentiable stand-in"
    )


def _scale(images: Tensor) -> float:
    """What a loss is multiplied by before its backward pass: in float16 everything below 6e-8 would be zero."""
    device = images.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return 1024.0 if half else 1.0


def _numbers(gradient: Tensor) -> Tensor:
    """The gradient without NaN and infinities. A look is cheaper than a copy, but would make a GPU wait."""
    if gradient.device.type == "cpu" and gradient.sum().isfinite():
        return gradient
    return gradient.nan_to_num(nan=0.0)


def _all_zero(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    return (flat.amax(1) == 0) & (flat.amin(1) == 0)


class WorstSeen:
    """The worst point seen so far for each image: misclassified before not, then by the loss.

    `until_success` closes an image once its goal is reached; `open` are the places still worth trying. An offer may
    hold several points of one image.
    """

    def __init__(self, oracle: Oracle, images: Images, until_success: bool) -> None:
        self.images = images
        self.until_success = until_success
        self._oracle, self._own = oracle, False
        self._closed: Tensor | None = None
        self._reached = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._value = images.new_full((len(images),), -torch.inf)

    @property
    def open(self) -> Rows:
        """The places of images to go on with; None for all."""
        if self.until_success:
            return (~self._reached).nonzero()[:, 0]
        return None if self._closed is None else (~self._closed).nonzero()[:, 0]

    def is_open(self, rows: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Which of these images are worth going on with, where `until_success` closes them."""
        return ~self._reached[rows]

    def close(self, rows: Int[Tensor, " k"]) -> None:
        """These images are done."""
        if self._closed is None:
            self._closed = torch.zeros_like(self._reached)
        self._closed[rows] = True

    def put(self, images: Images, rows: Rows = None) -> None:
        """Hold these, whatever was held before."""
        if rows is None:
            self.images, self._own = images, False
            return
        if not self._own:  # what was offered is not ours to write into
            self.images, self._own = self.images.clone(), True
        self.images[rows] = images

    def offer(self, images: Images, logits: Tensor, values: Tensor, rows: Rows = None) -> Bool[Tensor, " k"]:
        """Take in candidate points for some images; returns which of them reach the goal."""
        held_reached = self._reached if rows is None else self._reached[rows]
        reached = self._oracle.reached(images, logits, rows, held_reached)
        held_value = self._value if rows is None else self._value[rows]
        values = values.to(held_value.dtype).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        better = (reached & ~held_reached) | ((reached == held_reached) & (values > held_value))
        if self._oracle.indirect:  # what has been confirmed is not exchanged for what only the stand-in says
            better &= ~held_reached
        if rows is None:
            if better.device.type == "cpu" and better.all():
                self.images, self._own = images, False
            else:
                self.images, self._own = torch.where(column(better, images), images, self.images), True
            self._reached, self._value = reached | held_reached, torch.where(better, values, held_value)
        else:
            taken = _foremost(better, rows, values, reached)
            places = rows[taken]
            self.put(images[taken], places)
            self._value[places] = values[taken]
            self._reached[rows[reached]] = True
        return reached


class NearestSeen:
    """The nearest point seen so far that reaches the goal, for each image; the original where there was none.

    distance: its size in the norm of `size` (a threat's), infinite where there was none. An offer may hold several
    points of one image.
    """

    def __init__(self, oracle: Oracle, originals: Images, size: Callable[[Images], Tensor]) -> None:
        self.images = originals.clone()
        self.distance = originals.new_full((len(originals),), torch.inf)
        self._oracle, self._originals, self._size = oracle, originals, size

    def offer(self, images: Images, logits: Tensor, rows: Rows = None) -> Bool[Tensor, " k"]:
        """Take in candidate points for some images; returns which of them reach the goal."""
        reached = self._oracle.reached(images, logits, rows)
        places = torch.arange(len(images), device=images.device) if rows is None else rows
        distance = self._size(images - self._originals[places])
        taken = _foremost(reached & (distance < self.distance[places]), places, -distance)
        self.images[places[taken]] = images[taken]
        self.distance[places[taken]] = distance[taken]
        return reached


def _foremost(better: Bool[Tensor, " k"], rows: Int[Tensor, " k"], *merits: Tensor) -> Int[Tensor, " m"]:
    """Of the better points of each image the one with the largest merits, the last of which weighs most.

    Of equals the first.
    """
    taken = better.nonzero()[:, 0].flip(0)
    if len(taken) < 2:
        return taken
    for key in (*merits, rows):
        taken = taken[key[taken].argsort(stable=True)]
    image = rows[taken]
    return taken[torch.cat([image[1:] != image[:-1], image.new_ones(1, dtype=torch.bool)])]


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, shaped to multiply images."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Outcome:
    """The images an attack returned, and what it asked of the model (see `Oracle`)."""

    images: Images
    forwards: Int[Tensor, " n"]
    backwards: Int[Tensor, " n"]
    verifications: Int[Tensor, " n"]
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
        through: Model | None = None,
        room: int | None = None,
    ) -> Outcome:
        """Like a call, with the count of what was asked of the model.

        until_success: an image leaves the batch as soon as it is misclassified, which spares most of the work where
        only verdicts count; and all-zero gradients are counted, and asked again in float64. Evaluation works this way,
        training never does.
        through: a cheaper stand-in for the model (lower precision, layers folded) that answers all questions of the
        search; a success counts only after the model itself confirms it.
        room: how many images the model may be asked about at once, where an attack can ask about several points of an
        image; as many as `images` unless given.
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
            oracle = Oracle(model, originals, goal, until_success, through, room)
            found = originals
            if len(images):
                found = self.search(oracle, originals, goal, seed, places, until_success)
            if found.data_ptr() == originals.data_ptr():
                found = originals.clone()
            in_float64 = oracle.zero_in_float64()
        return Outcome(
            found.detach(),
            oracle.forwards,
            oracle.backwards,
            oracle.verifications,
            oracle.gradients,
            oracle.zero_gradients,
            in_float64,
        )

    @property
    def box(self) -> tuple[float, float] | None:
        """Where legal pixels lie: as the attack's threat says, where it has one."""
        threat = getattr(self, "threat", None)
        return (0.0, 1.0) if threat is None else threat.box

    @abstractmethod
    def passes(self, classes: int) -> tuple[int, int]:
        """Forward and backward passes per image at most, on a model of so many classes."""

    def remarks(self, classes: int) -> list[str]:
        """What a reader of the record should know about this attack on a model of so many classes."""
        return []

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
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
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
                if not isinstance(part, torch.jit.ScriptModule):  # there no call can put another in its place
                    part._buffers.update(before)
            for buffer, content in buffers:
                # not buffer.copy_: the caller's own graph may have saved it, and would take it for changed
                buffer.data.copy_(content)


def _seed(seed: int, cuda: set[torch.device]) -> None:
    """Seed the generators of the CPU and of some GPUs; `torch.manual_seed` would reach every other GPU too."""
    torch.default_generator.manual_seed(seed)
    for device in cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
