"""Sparse-coding data: a few atoms of a dictionary, plus noise, labelled by a linear function of the code.

    x = M z + xi,    y = sign⟨w*, z⟩

M (d, d) is unitary. The coordinates of z are independent and symmetric: ±1 with probability 1/d, ±1/√k with probability
k/d, else 0, so that E‖z‖² = 2 at any d. The noise xi is Gaussian of variance sigma²/d a coordinate, and, where
asked for, made of the atoms as well: M xi' with xi' = ±k^−0.501, rarely enough for a variance of sigma'²/d.

After Allen-Zhu and Li, "Feature purification: how adversarial training performs robust deep learning", 2021,
arXiv:2005.10190. Ours: the two values of |z| where the paper allows a range, and `margin`, which keeps only
samples with |⟨w*, z⟩| at least so large; the paper's claims are asymptotic in k, and at k of about 10 the label of many
samples without it hangs on the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from bessemer import randomness
from bessemer.data import Batch
from bessemer.errors import UsageError

SPIKE = 0.501  # spikes of dictionary noise are just below the small coordinates of the signal


@dataclass(frozen=True)
class SparseCoding:
    """A distribution of samples.

    dim: d. sparsity: k. noise: sigma, of the Gaussian part. spikes: sigma', of the part made of atoms. margin: the
    least |⟨w*, z⟩| kept. spread: |w*_i| drawn from [1 − spread, 1 + spread]; 0 for signs alone. seed: of M and w*.
    Raises `UsageError` for what cannot be drawn.
    """

    dim: int
    sparsity: int
    noise: float = 0.3
    spikes: float = 0.0
    margin: float = 0.7
    spread: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sparsity < self.dim:
            raise UsageError(
                f"a code of {self.dim} coordinates cannot have {self.sparsity} of them active; "
                "take a sparsity from 1 to below the dimension"
            )
        if self.noise < 0 or self.spikes < 0 or self.margin < 0:
            raise UsageError("noise, spikes and margin should not be negative")
        if not 0 <= self.spread < 1:
            raise UsageError(f"spread should lie between 0 and below 1, found {self.spread}")
        if self.spike_share > 1:
            raise UsageError(f"spikes of variance {self.spikes}²/d do not fit below k^-{SPIKE}; lower spikes")
        if self.margin > math.sqrt(self.sparsity):
            raise UsageError(
                f"hardly a sample of sparsity {self.sparsity} has a margin of {self.margin}; "
                "lower the margin to 1 or less"
            )

    @cached_property
    def atoms(self) -> Float[Tensor, "d d"]:
        """M transposed, an atom a row: the orthogonal factor of a Gaussian matrix, uniform over all rotations."""
        generator = torch.Generator().manual_seed(randomness.subseed(self.seed, 0))
        q, r = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign()).float().contiguous()  # rows that lie together are gathered faster

    @cached_property
    def signal(self) -> Float[Tensor, " d"]:
        """w*."""
        generator = torch.Generator().manual_seed(randomness.subseed(self.seed, 1))
        signs = torch.randint(0, 2, (self.dim,), generator=generator) * 2.0 - 1
        return signs * (1 + self.spread * (2 * torch.rand(self.dim, generator=generator) - 1))

    @cached_property
    def dense_direction(self) -> Float[Tensor, " d"]:
        """M w* / ‖M w*‖: the label hangs on it, yet no sample contains much of it."""
        direction = self.signal @ self.atoms
        return direction / direction.norm()

    @property
    def mean_square(self) -> float:
        """E‖x‖², margin aside."""
        return 2 + self.noise**2 + self.spikes**2

    @property
    def spike_share(self) -> float:
        """The probability that a coordinate of the noise made of atoms is a spike."""
        return self.spikes**2 * self.sparsity ** (2 * SPIKE) / self.dim

    @cached_property
    def reach(self) -> float:
        """The L2 radius from which on no classifier holds for half of all samples, whatever it has learned.

        A sample whose ⟨w*, z⟩ is s becomes one of the other label with 2 s √k more small coordinates, which is
        √(2 s) k^−¼ away, and a point between the two is both. Here s is the median of |⟨w*, z⟩|.
        """
        scores = self._scores(self._codes(1000, torch.Generator().manual_seed(randomness.subseed(self.seed, 2))))
        return math.sqrt(scores.abs().median().item() / 2) * self.sparsity**-0.25

    def draw(self, count: int, seed: int) -> Samples:
        """So many samples, the same for the same seed."""
        generator = torch.Generator().manual_seed(randomness.subseed(seed, self.seed))
        codes = self._codes(count, generator)
        inputs = codes.times(self.atoms)
        if self.spikes:
            spikes = _sparse(count, self.dim, self.spike_share, generator)
            inputs += spikes.scaled(self.sparsity**-SPIKE).times(self.atoms)
        if self.noise:
            noise = torch.randn(count, self.dim, generator=generator)
            inputs.add_(noise, alpha=self.noise / math.sqrt(self.dim))
        return Samples(inputs, (self._scores(codes) > 0).long(), codes)

    def _codes(self, count: int, generator: torch.Generator) -> Codes:
        """Codes that keep the margin."""
        kept: list[Codes] = []
        missing = count
        while missing:
            codes = _sparse(2 * missing, self.dim, (1 + self.sparsity) / self.dim, generator)
            small = torch.rand(len(codes.values), generator=generator) * (1 + self.sparsity) >= 1
            codes = codes.scaled(torch.where(small, self.sparsity**-0.5, 1.0))
            scores = self._scores(codes)
            keeps = ((scores.abs() >= self.margin) & (scores != 0)).nonzero()[:missing, 0]
            kept.append(codes.at(keeps))
            missing -= len(keeps)
        return Codes.joined(kept)

    def _scores(self, codes: Codes) -> Float[Tensor, " n"]:
        return codes.times(self.signal[:, None])[:, 0]


@dataclass(frozen=True)
class Codes:
    """Sparse rows: the columns and values of all entries that are not zero, row by row, and how many each row has."""

    columns: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    counts: Int[Tensor, " n"]

    def times(self, matrix: Float[Tensor, "d e"]) -> Float[Tensor, "n e"]:
        """The product with a matrix, at the cost of the entries that are not zero."""
        return embedding_bag(self.columns, matrix, self._offsets, mode="sum", per_sample_weights=self.values)

    def scaled(self, factor: Tensor | float) -> Codes:
        """The same places, other values."""
        return Codes(self.columns, self.values * factor, self.counts)

    def at(self, rows: Int[Tensor, " k"]) -> Codes:
        """Some of the rows, in ascending order."""
        chosen = torch.zeros(len(self.counts), dtype=torch.bool)
        chosen[rows] = True
        entries = chosen.repeat_interleave(self.counts)
        return Codes(self.columns[entries], self.values[entries], self.counts[rows])

    def dense(self, dim: int) -> Float[Tensor, "n d"]:
        """As a matrix."""
        return self.times(torch.eye(dim))

    @classmethod
    def joined(cls, parts: list[Codes]) -> Codes:
        """One below the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("columns", "values", "counts")))

    @property
    def _offsets(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts


@dataclass(frozen=True)
class Samples:
    """Inputs x, labels (0 for y = −1, 1 for y = +1) and the codes z they came from."""

    inputs: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    codes: Codes


class Stream:
    """Batches of `size` samples without end, every one fresh; or, with `sample`, from so many samples drawn once.

    `position` counts the samples read so far: it is the whole state.
    """

    def __init__(
        self, source: SparseCoding, size: int, seed: int, sample: int | None = None, device: str = "cpu"
    ) -> None:
        self.source, self.size, self.seed, self.device = source, size, seed, device
        self.position = 0
        self._fixed: tuple[Tensor, Tensor] | None = None
        if sample is not None:
            drawn = source.draw(sample, randomness.subseed(seed, 0))
            self._fixed = (drawn.inputs.to(device), drawn.labels.to(device))

    def next(self) -> Batch:
        """The batch at `position`, which then moves on."""
        seed = randomness.subseed(self.seed, 1, self.position)
        index = torch.arange(self.position, self.position + self.size, device=self.device)
        self.position += self.size
        if self._fixed is None:
            drawn = self.source.draw(self.size, seed)
            return Batch(drawn.inputs.to(self.device), drawn.labels.to(self.device), index, seed)
        inputs, labels = self._fixed
        index = randomness.integers(len(labels), self.seed, index)
        return Batch(inputs[index], labels[index], index, seed)


def _sparse(rows: int, dim: int, share: float, generator: torch.Generator) -> Codes:
    """Entries ±1, each with probability `share`: the gaps between them are geometric, so that zeros cost nothing."""
    cells = rows * dim
    gaps = int(cells * share + 8 * math.sqrt(cells * share) + 8)
    uniform = torch.rand(gaps, generator=generator, dtype=torch.float64)
    places = (torch.log1p(-uniform) / math.log1p(-share)).floor().long().add_(1).cumsum(0) - 1
    places = places[places < cells]
    signs = torch.randint(0, 2, places.shape, generator=generator) * 2.0 - 1
    return Codes(places % dim, signs, torch.bincount(places // dim, minlength=rows))
