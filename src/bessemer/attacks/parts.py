"""The parts a gradient attack is put together from: each a value, each with one question to answer.

Assion et al., "The attack generator", 2019, take attacks apart into goal, loss, start, optimiser, constraint and stop;
Bessemer's parts follow them. `GradientAttack` holds one of each; a part of your own is a frozen dataclass with the same
method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Images, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.errors import UsageError
from bessemer.threat import Threat

# --- goal: which class the loss is about -----------------------------------------------------------------------------


class Aim(ABC):
    """Which goal the loss is computed with. Whether the attack succeeded is still judged by the caller's goal."""

    @abstractmethod
    def goal(self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Int[Tensor, " n"]) -> Goal:
        """The goal to climb towards; a target that the caller asked for always wins."""


@dataclass(frozen=True)
class AsAsked(Aim):
    """The caller's own goal."""

    def goal(self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Int[Tensor, " n"]) -> Goal:
        """Unchanged."""
        return goal


@dataclass(frozen=True)
class RandomClass(Aim):
    """A class drawn for each image from all but its own (Xie and Yuille, 2020)."""

    def goal(self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Int[Tensor, " n"]) -> Goal:
        """One draw per image, the same in all restarts."""
        if goal.target is not None:
            return goal
        classes = oracle.classes(images)
        shift = 1 + randomness.integers(classes - 1, seed, index, stream=9)
        return Goal(goal.labels, (goal.labels + shift) % classes)


@dataclass(frozen=True)
class Likely(Aim):
    """The class of the `rank`-th highest logit other than the true one; −1 is the least likely (Kurakin et al., 2017).

    Raises `UsageError` where the model has no class of that rank.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank == 0:
            raise UsageError("Likely counts ranks from 1, the likeliest other class, or from -1, the least likely")

    def goal(self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Int[Tensor, " n"]) -> Goal:
        """Asks for the logits of the unattacked images once."""
        if goal.target is not None:
            return goal
        logits = oracle.logits(images)
        if abs(self.rank) >= logits.shape[1]:
            raise UsageError(f"rank {self.rank} needs {abs(self.rank) + 1} classes, the model has {logits.shape[1]}")
        others = logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(stable=True, dim=1, descending=True)[
            :, :-1
        ]
        return Goal(goal.labels, others[:, self.rank - 1 if self.rank > 0 else self.rank])


# --- start -----------------------------------------------------------------------------------------------------------


class Start(ABC):
    """Where a run begins."""

    @abstractmethod
    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """A point of the ball around each image."""


@dataclass(frozen=True)
class Natural(Start):
    """The image itself; restarts begin at random points all the same."""

    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """Unchanged."""
        return images


@dataclass(frozen=True)
class Uniform(Start):
    """A random point of the ball (Madry et al., 2018)."""

    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """Keyed by seed and index."""
        return threat.sample(images, seed, index)


@dataclass(frozen=True)
class SometimesNatural(Start):
    """The image itself for a share of all batches, a random point of the ball for the others: one draw for a batch.

    Xie et al., "Feature denoising for improving adversarial robustness", 2019, train so, with a share of 0.2 (in their
    code each GPU draws for its own images). The draw depends on the seed alone, so processes that share a batch agree.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"SometimesNatural needs a share of the batches from 0 to 1, found {self.share}")

    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """The draw by the seed; the point by seed and index."""
        drawn = randomness.uniform((), seed, torch.zeros(1, dtype=torch.int64), stream=12).item()
        return images if drawn < self.share else threat.sample(images, seed, index)


@dataclass(frozen=True)
class Signs(Start):
    """`share` of the radius along the steepest direction of Gaussian noise: for Linf a random corner, drawn in.

    Tramer et al., "Ensemble adversarial training", 2018, section 4.1 (R+FGSM, with a share of 1/2).
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"Signs needs a share of the radius above 0 and up to 1, found {self.share}")

    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """Keyed by seed and index."""
        noise = randomness.normal(tuple(images.shape[1:]), seed, index, images.dtype)
        return threat.project(images + self.share * threat.eps * threat.steepest(noise), images)


# --- step rule -------------------------------------------------------------------------------------------------------


class Direction(ABC):
    """Which way a step goes, of size 1 in the threat's norm."""

    @abstractmethod
    def of(
        self, gradient: Images, images: Images, memory: Tensor | None, threat: Threat
    ) -> tuple[Images, Tensor | None]:
        """The direction, and what to remember for the next step (None at the first)."""


@dataclass(frozen=True)
class Stepping(Direction):
    """As the norm steps best: the sign, the normalised gradient, SLIDE's sparse sign for L1."""

    def of(
        self, gradient: Images, images: Images, memory: Tensor | None, threat: Threat
    ) -> tuple[Images, Tensor | None]:
        """The threat's own step."""
        return threat.step(gradient, images), None


@dataclass(frozen=True)
class Steepest(Direction):
    """The dual norm's direction; it differs from `Stepping` for L1, where everything goes to one pixel."""

    def of(
        self, gradient: Images, images: Images, memory: Tensor | None, threat: Threat
    ) -> tuple[Images, Tensor | None]:
        """The threat's steepest direction."""
        return threat.steepest(gradient), None


@dataclass(frozen=True)
class Momentum(Direction):
    """Gradients of L1 size 1, added up with a decay: g ← decay · g + ∇ / ‖∇‖₁ (Dong et al., 2018, equation 6)."""

    decay: float = 1.0

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise UsageError(f"Momentum needs a decay from 0 upwards, found {self.decay}")

    def of(
        self, gradient: Images, images: Images, memory: Tensor | None, threat: Threat
    ) -> tuple[Images, Tensor | None]:
        """The threat's step along what has been added up."""
        # the largest magnitude goes out first: the sum of tiny gradients may underflow
        largest = column(gradient.flatten(1).abs().amax(1), gradient)
        scaled = gradient / largest.where(largest > 0, 1.0)
        size = column(scaled.flatten(1).abs().sum(1), gradient)
        fresh = scaled / size.where(size > 0, 1.0)
        memory = fresh if memory is None else self.decay * memory + fresh
        return threat.step(memory, images), memory


# --- schedule --------------------------------------------------------------------------------------------------------


class StepSize(ABC):
    """How far each step goes, in the threat's own units."""

    @abstractmethod
    def at(self, step: int, steps: int, threat: Threat) -> float:
        """The size of step 0 … steps − 1."""


@dataclass(frozen=True)
class Constant(StepSize):
    """The same at every step; 2.5 eps / steps unless given, with which a run can reach any point of the ball."""

    size: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not self.size > 0:
            raise UsageError(f"a step_size should be above 0, found {self.size}")

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """Does not depend on the step."""
        return 2.5 * threat.eps / steps if self.size is None else self.size


@dataclass(frozen=True)
class AtLeast(StepSize):
    """max(size, eps / steps): short runs can still cross the ball (Xie et al., "Feature denoising", 2019, code)."""

    size: float

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """Does not depend on the step."""
        return max(self.size, threat.eps / steps)


@dataclass(frozen=True)
class Cosine(StepSize):
    """From `share` of the radius down to nothing along half a cosine."""

    share: float = 1.0

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """Largest at step 0."""
        return self.share * threat.eps * (1 + math.cos(math.pi * step / steps)) / 2


# --- projection ------------------------------------------------------------------------------------------------------


class Projection(ABC):
    """Back to where the attacker may be."""

    @abstractmethod
    def around(self, originals: Images, threat: Threat) -> Callable[[Images], Images]:
        """What takes a point to the one of the allowed set that a run goes on from."""


@dataclass(frozen=True)
class Ball(Projection):
    """The threat's ball and box."""

    def around(self, originals: Images, threat: Threat) -> Callable[[Images], Images]:
        """The threat's own projection."""
        return threat.around(originals)


@dataclass(frozen=True)
class GreyLevels(Projection):
    """The points of the ball that an 8-bit file can hold: each pixel moves by whole grey levels, rounded towards none.

    The originals should be 8-bit images themselves. Raises `UsageError` for a threat outside [0, 1].
    """

    def around(self, originals: Images, threat: Threat) -> Callable[[Images], Images]:
        """Rounding towards the original does not leave the ball."""
        if threat.box != (0.0, 1.0):
            raise UsageError(f"GreyLevels needs a threat in [0, 1], found {threat!r}")
        project = threat.around(originals)

        def rounded(images: Images) -> Images:
            # what float32 leaves of a whole level is still one: as a radius, 4e-7
            levels = (255 * (project(images) - originals) + 1e-4 * (images - originals).sign()).trunc()
            return (originals + levels / 255).clamp(0, 1)

        return rounded


# --- stopping --------------------------------------------------------------------------------------------------------


class Stop(ABC):
    """When an image is done, if the caller does not stop it earlier."""

    @abstractmethod
    def done(self, goal: Goal, logits: Float[Tensor, "n k"], reached: Bool[Tensor, " n"]) -> Bool[Tensor, " n"] | None:
        """Which images are; None where none ever is."""


@dataclass(frozen=True)
class AllSteps(Stop):
    """After the last step of the last restart."""

    def done(self, goal: Goal, logits: Float[Tensor, "n k"], reached: Bool[Tensor, " n"]) -> Bool[Tensor, " n"] | None:
        """Nobody leaves early."""
        return None


@dataclass(frozen=True)
class OnceConfident(Stop):
    """Once the wanted class leads by `lead` logits: 0 for any success, more for examples that carry over elsewhere."""

    lead: float = 0.0

    def done(self, goal: Goal, logits: Float[Tensor, "n k"], reached: Bool[Tensor, " n"]) -> Bool[Tensor, " n"] | None:
        """By the margin of the caller's goal."""
        return reached & (losses.margin(goal, logits) >= self.lead)


# by the name that recipes give them; each kind with its own name
PARTS: dict[type, tuple[str, dict[str, type]]] = {
    Aim: ("aim", {"as-asked": AsAsked, "random-class": RandomClass, "likely": Likely}),
    Start: ("start", {"natural": Natural, "uniform": Uniform, "sometimes-natural": SometimesNatural, "signs": Signs}),
    Direction: ("direction", {"stepping": Stepping, "steepest": Steepest, "momentum": Momentum}),
    StepSize: ("step_size", {"constant": Constant, "at-least": AtLeast, "cosine": Cosine}),
    Projection: ("projection", {"ball": Ball, "grey-levels": GreyLevels}),
    Stop: ("stop", {"all-steps": AllSteps, "once-confident": OnceConfident}),
}
