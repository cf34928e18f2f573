"""Images written with few features: a sparse code over all shifts of a network's first-layer filters.

    min over codes z   1/2 |u − Σ_f w_f ∗ z_f|² + penalty |z|₁,    u = image − its mean colour,    |w_f|₂ = 1

After Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190: that images have a sparse code over the features
of a trained network's first layer (AlexNet there) is why its sparse-coding model speaks of images at all. One penalty
serves all images, and is moved until the average share of entries that are not zero is the one asked for.

The solver is not the paper's, which is not known to us, but FISTA (Beck and Teboulle, 2009) with O'Donoghue and
Candès' restarts (2015), on the images' device; how far the codes are from the optimum is measured by the duality gap.
Codes are signed, as in the model x = M z with symmetric z. The reconstruction is the minimum as it stands: the penalty
pulls coefficients towards zero and images towards their mean colour, and nothing is fitted again afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad, pixel_shuffle

from bessemer import randomness
from bessemer.arithmetic import exact
from bessemer.attacks import check_images
from bessemer.errors import ImagesError, UsageError

LEVELS = (0.0405, 0.0289, 0.0190, 0.0110, 0.0044)  # published: Microsoft's account of the paper, figure 4
CLOSE = 0.02  # how far from the share asked for, relative to it, is near enough
TRIES = 12  # penalties tried per share


@dataclass(frozen=True)
class Reconstruction:
    """Images of one average sparsity.

    share: of all entries of the codes, those that are not zero, on average; `asked` is what it should be. images:
    (N, C, H, W), not clipped to [0, 1]. errors: per image, the squared error relative to the image's squared distance
    from its mean colour (1: nothing is reconstructed). gap: the largest duality gap over images, in the same unit.
    """

    asked: float
    share: float
    penalty: float
    images: Float[Tensor, "n c h w"]
    errors: Float[Tensor, " n"]
    gap: float

    @property
    def reached(self) -> bool:
        """Whether the share is the one asked for, within a fiftieth of it."""
        return abs(self.share - self.asked) <= CLOSE * self.asked


class Shifts:
    """The dictionary of all shifts of some filters (F, C, h, w), scaled to length 1; filters of zeros are left out.

    A filter is centred on every pixel in turn, so that codes are (N, F, H, W), a row and a column more where its sides
    are even; what hangs over the border is cut off.
    """

    def __init__(self, filters: Float[Tensor, "f c h w"]) -> None:
        if filters.dim() != 4 or not filters.any():
            raise UsageError(f"filters should be (F, C, H, W) and not all zero, not {tuple(filters.shape)}")
        lengths = filters.flatten(1).norm(dim=1)
        kept = lengths > 0
        self.atoms = (filters[kept] / lengths[kept, None, None, None]).to(memory_format=torch.channels_last)
        self.size = filters.shape[2], filters.shape[3]
        self.padding = filters.shape[2] // 2, filters.shape[3] // 2
        # CPUs waste most of a convolution to three channels: four pixels of each channel are made at once instead
        turned = self.atoms.flip(2, 3).transpose(0, 1)
        four = [pad(turned, (b, 1 - b, a, 1 - a)) for a in (0, 1) for b in (0, 1)]
        self._four = torch.stack(four, 1).flatten(0, 1).to(memory_format=torch.channels_last)

    def synthesise(self, codes: Float[Tensor, "n f i j"]) -> Float[Tensor, "n c h w"]:
        """The images with these codes: D z, a transposed convolution."""
        high, wide = (
            count + size - 1 - 2 * padding
            for count, size, padding in zip(codes.shape[2:], self.size, self.padding, strict=True)
        )
        before = [size - 1 - padding for size, padding in zip(self.size, self.padding, strict=True)]
        framed = pad(codes, (before[1], before[1] + wide % 2, before[0], before[0] + high % 2))
        return pixel_shuffle(conv2d(framed, self._four, stride=2), 2)[:, :, :high, :wide]

    def correlate(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f i j"]:
        """The inner products of images with every shifted filter: Dᵀ u."""
        return conv2d(images, self.atoms, padding=self.padding)

    def curvature(self, images: Float[Tensor, "n c h w"], steps: int = 30) -> float:
        """A little more than the largest eigenvalue of D Dᵀ on images of that size, by the power method."""
        place = torch.zeros(1, dtype=torch.int64, device=images.device)
        vector = randomness.normal(tuple(images.shape[1:]), 0, place, images.dtype)
        size = vector.norm()
        for _ in range(steps):
            vector = self.synthesise(self.correlate(vector / size))
            size = vector.norm()
        return 1.02 * float(size)


def sparse_codes(
    targets: Float[Tensor, "n c h w"],
    dictionary: Shifts,
    penalty: float,
    *,
    start: Float[Tensor, "n f i j"] | None = None,
    steps: int = 300,
    gap: float = 1e-3,
    curvature: float | None = None,
) -> tuple[Float[Tensor, "n f i j"], float]:
    """Codes for targets (images less their mean colour), and the largest duality gap left.

    gap: where to stop, relative to each target's own objective without a code, |u|²/2; steps: where to stop anyway.
    start: codes to begin at; zeros unless given.
    """
    curvature = dictionary.curvature(targets) if curvature is None else curvature
    codes = torch.zeros_like(dictionary.correlate(targets)) if start is None else start
    ahead, left = codes, math.inf
    momentum = targets.new_ones(len(targets), 1, 1, 1)
    for step in range(steps):
        slope = dictionary.correlate(targets - dictionary.synthesise(ahead))
        moved = _shrunk(ahead + slope / curvature, penalty / curvature)
        # where the last move points uphill, momentum has overshot
        overshot = ((ahead - moved) * (moved - codes)).sum((1, 2, 3), keepdim=True) > 0
        following = torch.where(overshot, 1.0, (1 + (1 + 4 * momentum.square()).sqrt()) / 2)
        ahead = moved + torch.where(overshot, 0.0, (momentum - 1) / following) * (moved - codes)
        codes, momentum = moved, following
        if step % 20 == 19 or step == steps - 1:
            left = float(duality_gap(targets, dictionary, codes, penalty).max())
            if left <= gap:
                break
    return codes, left


def duality_gap(
    targets: Float[Tensor, "n c h w"], dictionary: Shifts, codes: Float[Tensor, "n f i j"], penalty: float
) -> Float[Tensor, " n"]:
    """How far codes may at most be from the optimum, per image, relative to |u|²/2."""
    residual = targets - dictionary.synthesise(codes)
    steepest = dictionary.correlate(residual).flatten(1).abs().amax(1)
    scale = (penalty / steepest.clamp_min(1e-30)).clamp_max(1.0)
    primal = residual.flatten(1).square().sum(1) / 2 + penalty * codes.flatten(1).abs().sum(1)
    apart = targets - scale.view(-1, 1, 1, 1) * residual
    energy = targets.flatten(1).square().sum(1)
    dual = (energy - apart.flatten(1).square().sum(1)) / 2
    return (primal - dual) / (energy / 2).clamp_min(1e-30)


@exact()
def reconstruct(
    images: Float[Tensor, "n c h w"],
    filters: Float[Tensor, "f c h w"],
    levels: Sequence[float] = LEVELS,
    *,
    steps: int = 300,
    gap: float = 1e-3,
) -> list[Reconstruction]:
    """Images rebuilt from all shifts of some filters, at several average shares of non-zero entries, in that order.

    A minimum has at most as many such entries as an image has numbers: with F filters, no share above about C / F can
    be reached (`Reconstruction.reached` says where one was not). steps, gap: for each penalty tried, see
    `sparse_codes`.

    Raises `ImagesError` where there are no images or the filters have other channels, `UsageError` for a level outside
    (0, 1).
    """
    check_images(images)
    if images.dim() != 4 or not len(images) or filters.dim() != 4 or images.shape[1] != filters.shape[1]:
        raise ImagesError(f"filters {tuple(filters.shape)} and images {tuple(images.shape)} have different channels")
    wrong = [level for level in levels if not 0 < level < 1]
    if wrong:
        raise UsageError(f"a level is a share between 0 and 1, such as 0.0405, not {wrong[0]}")
    dictionary = Shifts(filters.detach().to(images))
    colour = images.mean((2, 3), keepdim=True)
    targets = images - colour
    curvature = dictionary.curvature(targets)
    codes = torch.zeros_like(dictionary.correlate(targets))
    penalty = 0.3 * float(dictionary.correlate(targets).abs().max())
    tried: list[tuple[float, float]] = []  # penalties and the shares they gave
    found: dict[float, Reconstruction] = {}
    for level in sorted(set(levels)):  # from few entries to many, each from the codes before
        for _ in range(TRIES):
            penalty = _proposed(tried, level) if tried else penalty
            codes, left = sparse_codes(
                targets, dictionary, penalty, start=codes, steps=steps, gap=gap, curvature=curvature
            )
            share = float((codes != 0).float().mean())
            tried.append((penalty, share))
            if abs(share - level) <= CLOSE * level:
                break
        rebuilt = dictionary.synthesise(codes)
        energy = targets.flatten(1).square().sum(1).clamp_min(1e-30)
        errors = (targets - rebuilt).flatten(1).square().sum(1) / energy
        found[level] = Reconstruction(level, share, penalty, colour + rebuilt, errors, left)
    return [found[level] for level in levels]


def _shrunk(codes: Tensor, by: float) -> Tensor:
    """Soft thresholding."""
    return codes - codes.clamp(-by, by)


def _proposed(tried: list[tuple[float, float]], level: float) -> float:
    """The next penalty to try for a share, as if the share's logarithm were linear in the penalty's.

    Between the nearest penalties above and below it where both are known; else beyond the last two, by at most a
    factor of 4.
    """
    above = min((one for one in tried if one[1] >= level), key=lambda one: one[1], default=None)
    below = max((one for one in tried if one[1] < level), key=lambda one: one[1], default=None)
    if above is not None and below is not None:
        way = math.log(level / below[1]) / math.log(above[1] / below[1]) if below[1] > 0 else 0.5
        return below[0] * (above[0] / below[0]) ** min(0.95, max(0.05, way))
    penalty, share = tried[-1]
    if share == 0:
        return penalty / 4
    slope = -1.0
    if len(tried) > 1 and tried[-2][1] > 0 and tried[-2] != tried[-1]:
        slope = min(-0.3, math.log(share / tried[-2][1]) / math.log(penalty / tried[-2][0]))
    return penalty * min(4.0, max(0.25, (level / share) ** (1 / slope)))


def random_filters(like: Float[Tensor, "f c h w"], seed: int = 0) -> Float[Tensor, "f c h w"]:
    """Filters of independent normal numbers, of the same shape: what a dictionary is worth that learned nothing."""
    places = torch.arange(len(like), device=like.device)
    return randomness.normal(tuple(like.shape[1:]), seed, places, like.dtype)
