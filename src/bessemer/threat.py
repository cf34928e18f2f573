"""The threat is a ball: what an attacker may do to an image.

`Linf(8/255)`, `L2(0.5)` and `L1(12)` measure a change, know the steepest way up, project (the pixel box included) and
draw a random start. Attacks, training, margins and certificates take a threat; nobody else computes a norm.

Radii are in units of [0, 1] pixels, over all coordinates of an image. `box=None` is for real vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bessemer import randomness
from bessemer.errors import ThreatError, UsageError, unknown

Images = Float[Tensor, "n *shape"]


@dataclass(frozen=True, repr=False)
class Threat(ABC):
    """A ball of radius `eps` around each image, cut with the pixel box.

    Raises `ThreatError` where the radius is negative, not a number, or (Linf only) above 1: that is almost always a
    radius in grey levels.
    """

    eps: float
    box: tuple[float, float] | None = (0.0, 1.0)

    norm: ClassVar[str]

    def __post_init__(self) -> None:
        if not (self.eps >= 0 and self.eps < float("inf")):
            raise ThreatError(f"eps should be a number from 0 upwards, not {self.eps}")

    @abstractmethod
    def size(self, change: Images) -> Float[Tensor, " n"]:
        """How far a change moves each image, in this norm."""

    @abstractmethod
    def steepest(self, gradient: Images) -> Images:
        """The change of size 1 with the largest inner product with the gradient (the dual norm); 0 where that is 0."""

    @abstractmethod
    def into_ball(self, change: Images) -> Images:
        """The nearest change (in L2) whose size is at most `eps`."""

    @abstractmethod
    def _inside(self, shape: tuple[int, ...], seed: int, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Random changes inside the ball."""

    def step(self, gradient: Images, images: Images) -> Images:
        """The direction of size 1 that an iterative attack takes; the steepest, unless a norm knows better."""
        return self.steepest(gradient)

    def project(self, adversarial: Images, images: Images) -> Images:
        """Back into the ball around `images`, then into the box.

        Clipping to the box moves every coordinate towards its (legal) original, so the ball is never left again.
        """
        return self._clip(images + self.into_ball(adversarial - images))

    def around(self, images: Images) -> Callable[[Images], Images]:
        """`project` for images that stay the same, as in the steps of an attack: what can be prepared is."""
        return lambda adversarial: self.project(adversarial, images)

    def sample(self, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        """A random start in the ball around each image, keyed by seed and image index."""
        change = self._inside(tuple(images.shape[1:]), seed, index, images.dtype)
        return self.project(images + change, images)

    def require(self, adversarial: Images, images: Images, slack: float = 1e-5) -> None:
        """Refuse (`ThreatError`) images that left the ball or the box by more than `slack`."""
        size = self.size(adversarial - images)
        worst = size.max().item() if len(size) else 0.0
        if not worst <= self.eps + slack * max(1.0, self.eps):
            raise ThreatError(f"an image moved by {self.norm} {worst:.6g}, more than the radius {self.eps:.6g} allows")
        if self.box is not None and len(size):
            low, high = adversarial.min().item(), adversarial.max().item()
            if not (low >= self.box[0] - slack and high <= self.box[1] + slack):
                raise ThreatError(f"an image left {list(self.box)}: its pixels run from {low:.6g} to {high:.6g}")

    def _clip(self, images: Images) -> Images:
        return images if self.box is None else images.clamp(*self.box)

    def __repr__(self) -> str:
        return f"{self.norm}({_written(self.eps)}{'' if self.box == (0.0, 1.0) else f', box={self.box}'})"

    def __str__(self) -> str:
        """Text that `parse` reads back: `Linf:8/255`."""
        return f"{self.norm}:{_written(self.eps)}"


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, shaped to multiply images."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, repr=False)
class Linf(Threat):
    """Every pixel may move by at most `eps`."""

    norm: ClassVar[str] = "Linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1 and self.box is not None:
            raise ThreatError(
                f"an Linf radius of {self.eps:g} covers every image in [0, 1]; for grey levels write {self.eps:g}/255"
            )

    def size(self, change: Images) -> Float[Tensor, " n"]:
        """The largest move of any pixel."""
        return change.flatten(1).abs().amax(1)

    def steepest(self, gradient: Images) -> Images:
        """The sign."""
        return gradient.sign()

    def into_ball(self, change: Images) -> Images:
        """Each pixel's move, clipped."""
        return change.clamp(-self.eps, self.eps)

    def project(self, adversarial: Images, images: Images) -> Images:
        """Each pixel, clipped to its own interval."""
        return self.around(images)(adversarial)

    def around(self, images: Images) -> Callable[[Images], Images]:
        """The intervals are known beforehand: one pass a step where the general way takes four."""
        low, high = images - self.eps, images + self.eps
        if self.box is not None:
            low, high = low.clamp_min_(self.box[0]), high.clamp_max_(self.box[1])
        return lambda adversarial: torch.clamp(adversarial, low, high)

    def _inside(self, shape: tuple[int, ...], seed: int, index: Tensor, dtype: torch.dtype) -> Tensor:
        return (2 * randomness.uniform(shape, seed, index, dtype) - 1) * self.eps


@dataclass(frozen=True, repr=False)
class L2(Threat):
    """The Euclidean length of the whole change is at most `eps`."""

    norm: ClassVar[str] = "L2"

    def size(self, change: Images) -> Float[Tensor, " n"]:
        """The Euclidean length."""
        return torch.linalg.vector_norm(change.flatten(1), dim=1)

    def steepest(self, gradient: Images) -> Images:
        """The gradient, at length 1."""
        # a float32 gradient of 1e-23 squares to zero: its own largest magnitude goes out first
        largest = gradient.flatten(1).abs().amax(1)
        scaled = gradient / _column(largest.where(largest > 0, 1.0), gradient)
        length = self.size(scaled)
        return scaled / _column(length.where(length > 0, 1.0), gradient)

    def into_ball(self, change: Images) -> Images:
        """The change, shortened."""
        return change * _column((self.eps / self.size(change).clamp_min(1e-30)).clamp_max(1.0), change)

    def _inside(self, shape: tuple[int, ...], seed: int, index: Tensor, dtype: torch.dtype) -> Tensor:
        direction = self.steepest(randomness.normal(shape, seed, index, dtype))
        radius = randomness.uniform((1,), seed, index, dtype, stream=3)[:, 0] ** (1 / max(1, direction[0].numel()))
        return direction * _column(radius * self.eps, direction)


@dataclass(frozen=True, repr=False)
class L1(Threat):
    """The moves of all pixels together are at most `eps`."""

    norm: ClassVar[str] = "L1"
    # SLIDE's default (Tramer and Boneh, 2019): a step moves the steepest hundredth of the pixels
    share: ClassVar[float] = 0.01

    def size(self, change: Images) -> Float[Tensor, " n"]:
        """The sum of all moves."""
        return change.flatten(1).abs().sum(1)

    def steepest(self, gradient: Images) -> Images:
        """All of it on the pixel with the largest gradient."""
        flat = gradient.flatten(1)
        place = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign()).view_as(gradient)

    def step(self, gradient: Images, images: Images) -> Images:
        """SLIDE's direction: equal moves of the steepest 1 % of the pixels that the box does not hold back."""
        flat = gradient.flatten(1)
        if self.box is not None:
            x = images.flatten(1)
            held = ((x <= self.box[0]) & (flat < 0)) | ((x >= self.box[1]) & (flat > 0))
            flat = flat.masked_fill(held, 0)
        kept = max(1, round(self.share * flat.shape[1]))
        largest = flat.abs().topk(kept, dim=1)
        # where fewer pixels are free than asked for, topk returns zeros, and their sign is zero
        chosen = torch.zeros_like(flat).scatter(1, largest.indices, flat.gather(1, largest.indices).sign())
        return (chosen / chosen.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)

    def into_ball(self, change: Images) -> Images:
        """The exact projection, by sorting (Duchi et al., "Efficient projections onto the l1-ball", 2008, figure 1)."""
        flat = change.flatten(1)
        magnitude = flat.abs()
        sorted_ = magnitude.sort(dim=1, descending=True).values
        excess = sorted_.cumsum(1) - self.eps
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
        active = (sorted_ * rank > excess).sum(1, keepdim=True).clamp_min(1)
        threshold = (excess.gather(1, active - 1) / active).clamp_min(0)
        return (flat.sign() * (magnitude - threshold).clamp_min(0)).view_as(change)

    def project(self, adversarial: Images, images: Images) -> Images:
        """The nearest point (in L2) of ball and box together: one after the other would fall short of the rim.

        A pixel that has `room` in the direction of its change u moves by clamp(|u| − t, 0, room), with the smallest
        t ≥ 0 that brings the sum of moves down to eps (Croce and Hein, "Mind the box", 2021, section 2). Bisection
        settles which pixels move and which have reached the wall; for these the sum is linear in t.
        """
        original = images.flatten(1)
        change = adversarial.flatten(1) - original
        wanted, room = change.abs(), torch.full_like(change, torch.inf)
        if self.box is not None:
            room = torch.where(change > 0, self.box[1] - original, original - self.box[0]).clamp_min(0)
        eps = self.eps * (1 - 4 * torch.finfo(wanted.dtype).eps)  # what rounding may add to a sum
        low, high = torch.zeros_like(wanted[:, :1]), wanted.amax(1, keepdim=True)
        high = high.where(wanted.minimum(room).sum(1, keepdim=True) > eps, 0)
        for _ in range(24):  # what float32 can tell apart
            middle = (low + high) / 2
            fits = (wanted - middle).clamp_min_(0).minimum(room).sum(1, keepdim=True) <= eps
            low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        left = wanted - high
        moves = left.clamp_min(0).minimum(room)
        free = ((left > 0) & (left < room)).sum(1, keepdim=True)
        threshold = (high - (eps - moves.sum(1, keepdim=True)) / free.clamp_min(1)).maximum(low)
        moves = (wanted - threshold).clamp_min(0).minimum(room)
        return self._clip((original + change.sign() * moves).view_as(images))

    def _inside(self, shape: tuple[int, ...], seed: int, index: Tensor, dtype: torch.dtype) -> Tensor:
        uniform = randomness.uniform(shape, seed, index) - 0.5  # in float32: a shorter type rounds it to the poles
        laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
        radius = randomness.uniform((1,), seed, index, stream=3)[:, 0]
        return (laplace * _column(radius * self.eps / self.size(laplace).clamp_min(1e-30), laplace)).to(dtype)


THREATS: dict[str, type[Threat]] = {kind.norm: kind for kind in (Linf, L2, L1)}


def parse(text: str) -> Threat:
    """The threat that text such as `Linf:8/255` or `L2:0.5` names. Raises `UsageError`; evaluates no code."""
    norm, colon, radius = text.partition(":")
    if norm not in THREATS:
        raise unknown("threat", norm, THREATS)
    if not colon:
        raise UsageError(f"threat: {text!r} has no radius; write {norm}:8/255 or {norm}:0.5")
    return THREATS[norm](read_number(radius))


def read_number(text: str) -> float:
    """`8/255` or `0.03` as a number. Raises `UsageError`."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{text!r} is not a number; write 0.031 or 8/255") from None


def _written(value: float) -> str:
    """8/255 as `8/255`, 0.3 as `0.3`: whichever is shorter and reads back as the same float."""
    grey = Fraction(value * 255).limit_denominator(8)
    fraction = f"{grey}/255" if grey.denominator == 1 else ""
    plain = repr(float(value))
    return fraction if fraction and float(Fraction(fraction)) == value and len(fraction) < len(plain) else plain
