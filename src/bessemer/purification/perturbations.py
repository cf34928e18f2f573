"""Adversarial perturbations as pictures and in numbers: noise or object, dense or pure.

After Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190: a network trained on clean images is attacked
through dense mixtures of features, and its perturbations look like coloured noise; an adversarially trained one is
attacked through features that belong to images, and its perturbations look like parts of objects on grey.

Every measure is a number per perturbation, blind to its size and sign. How dense one is depends on the basis it is
written in, so each is asked in three orthonormal ones:

    pixels     as it stands
    DCT        the two-dimensional cosine transform of each channel (type II)
    learned    patches, in a basis learned from images

For the learned one we estimate a unitary dictionary, as the paper's sparse-coding model x = M z has one: the
orthonormal basis in which the fourth powers of the coefficients are largest (Zhai et al., "Complete dictionary learning
via L4-norm maximization", 2020). Coefficients in a basis keep a perturbation's length, so the three can be compared;
codes over an overcomplete dictionary depend on a penalty as well.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, unfold

from bessemer import randomness
from bessemer.attacks import Attack, check_images
from bessemer.errors import ImagesError, UsageError

PATCH = 8
LEARNED_FROM = 20_000  # patches at most
ROUNDS = 100
SETTLED = 1e-3  # how little a round turns a basis that is done: mean square change of an atom

Coefficients = Float[Tensor, "n *shape"]
Measure = Float[Tensor, " n"]


def perturbations(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], attack: Attack, seed: int = 0
) -> Float[Tensor, "n c h w"]:
    """What an attack adds to each image: with a bounded attack, the worst change it found, a success or not."""
    return attack(model, images, labels, seed=seed) - images


def noise_like(perturbations: Float[Tensor, "n c h w"], seed: int = 0) -> Float[Tensor, "n c h w"]:
    """Normal noise with the L2 size of each perturbation: what every measure gives where there is nothing to see."""
    places = torch.arange(len(perturbations), device=perturbations.device)
    noise = randomness.normal(tuple(perturbations.shape[1:]), seed, places, perturbations.dtype)
    return noise * (_length(perturbations) / _length(noise)).view(-1, 1, 1, 1)


# --- density ---------------------------------------------------------------------------------------------------------


def participation(coefficients: Coefficients, power: int = 2) -> Measure:
    """The share of coefficients that take part: (Σ|d|ᵖ)² / (n Σ|d|²ᵖ), p the power.

    1 where all are equally large, 1/n where one stands alone; normal noise has 1/3 for power 2 (|d|₂⁴ / n|d|₄⁴) and
    2/π for power 1 (|d|₁² / n|d|₂²). NaN for a perturbation of zeros.
    """
    raised = _scaled(coefficients).abs() ** power
    return raised.sum(1).square() / (raised.shape[1] * raised.square().sum(1))


def hoyer(coefficients: Coefficients) -> Measure:
    """Hoyer's sparsity, (√n − |d|₁/|d|₂) / (√n − 1): 0 where all are equally large, 1 where one stands alone.

    P. Hoyer, "Non-negative matrix factorization with sparseness constraints", 2004. Normal noise of many coefficients
    has 1 − √(2/π), about 0.20. NaN for a perturbation of zeros.
    """
    flat = _scaled(coefficients)
    root = math.sqrt(flat.shape[1])
    return (root - flat.abs().sum(1) / flat.square().sum(1).sqrt()) / (root - 1)


# --- bases -----------------------------------------------------------------------------------------------------------


def dct(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The orthonormal two-dimensional cosine transform (type II) of each channel, lowest frequencies first."""
    return _cosines(images.shape[2], images) @ images @ _cosines(images.shape[3], images).T


def learned_basis(
    images: Float[Tensor, "n c h w"], patch: int = PATCH, rounds: int = ROUNDS, seed: int = 0
) -> Float[Tensor, "k c p p"]:
    """An orthonormal basis of patches in which those of images are sparse: k = c p², atoms by falling energy.

    From at most 20,000 patches, taken at random places, less their mean. A ← polar((A Y)³ Yᵀ), from the patches'
    principal components, until it has settled or for `rounds` rounds (Zhai et al., algorithm 2).
    Raises `ImagesError` where no patch fits into an image.
    """
    patches = _patches(images, patch, seed)
    patches = patches - patches.mean(1, keepdim=True)
    patches /= patches.square().mean().sqrt().clamp_min(1e-30)
    basis = torch.linalg.eigh((patches @ patches.T).double()).eigenvectors.T
    for _ in range(rounds):
        left, _, right = torch.linalg.svd((((basis.to(patches) @ patches) ** 3) @ patches.T).double())
        before, basis = basis, left @ right
        if float((basis - before).square().sum() / len(basis)) < SETTLED:
            break
    basis = basis.to(images.dtype)
    energy = (basis @ patches).square().sum(1)
    return basis[energy.argsort(descending=True)].view(-1, images.shape[1], patch, patch)


def in_basis(images: Float[Tensor, "n c h w"], basis: Float[Tensor, "k c p p"]) -> Float[Tensor, "n k i j"]:
    """Coefficients of the patches that tile the images side by side; what does not fill a patch is left out.

    Raises `ImagesError` where the basis does not fit the images.
    """
    size = basis.shape[-1]
    if images.shape[1] != basis.shape[1] or min(images.shape[2:]) < size:
        raise ImagesError(f"patches of {tuple(basis.shape[1:])} do not fit images of {tuple(images.shape[1:])}")
    return conv2d(images, basis, stride=size)


# --- what it looks like ----------------------------------------------------------------------------------------------


def high_frequencies(perturbations: Float[Tensor, "n c h w"]) -> Measure:
    """The share of the energy in the upper half of the frequencies, of rows or of columns.

    3/4 for white noise of even sizes, 0 for what is constant. NaN for a perturbation of zeros.
    """
    energy = dct(_scaled(perturbations).view_as(perturbations)).square()
    high, wide = ((size + 1) // 2 for size in perturbations.shape[2:])
    return 1 - energy[:, :, :high, :wide].flatten(1).sum(1) / energy.flatten(1).sum(1)


def colour(perturbations: Float[Tensor, "n 3 h w"]) -> Measure:
    """The share of the energy that is not grey: 2/3 for noise of independent channels, 0 where all channels agree.

    Raises `ImagesError` for images that are not RGB.
    """
    if perturbations.shape[1] != 3:
        raise ImagesError(f"only RGB images have colour, not those with {perturbations.shape[1]} channels")
    scaled = _scaled(perturbations).view_as(perturbations)
    grey = scaled.mean(1, keepdim=True)
    return (scaled - grey).square().flatten(1).sum(1) / scaled.square().flatten(1).sum(1)


def cosine(one: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"]) -> Measure:
    """How far two perturbations of each image point the same way: 1, 0 or −1; about ±1/√n by chance."""
    one, other = _scaled(one), _scaled(other)
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def edges(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """How steep each image is at each pixel: the length of Sobel's gradient of its grey levels."""
    grey = pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    slopes = conv2d(grey, torch.stack([across, across.T])[:, None])
    return slopes.square().sum(1).sqrt()


def on_edges(perturbations: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Measure:
    """The correlation, over an image's pixels, of the size of its perturbation with its edges; 0 by chance.

    Compare with the edges of other images: perturbations and objects both keep to the middle.
    NaN where either is the same everywhere.
    """
    size = _scaled(perturbations).view_as(perturbations).square().sum(1).sqrt().flatten(1)
    steep = _scaled(edges(images))
    size, steep = size - size.mean(1, keepdim=True), steep - steep.mean(1, keepdim=True)
    return (size * steep).sum(1) / (size.norm(dim=1) * steep.norm(dim=1))


def measured(
    perturbations: Float[Tensor, "n c h w"],
    images: Float[Tensor, "n c h w"],
    basis: Float[Tensor, "k c p p"],
) -> dict[str, Measure]:
    """All that can be said of perturbations by themselves and beside their images, by name.

    basis: from `learned_basis`. Grey images have no `colour`.
    """
    check_images(images)
    if perturbations.shape != images.shape:
        raise ImagesError(f"perturbations {tuple(perturbations.shape)} are not of images {tuple(images.shape)}")
    if not len(images):
        raise UsageError("there are no perturbations to measure")
    written = {"pixels": perturbations, "DCT": dct(perturbations), "learned": in_basis(perturbations, basis)}
    found: dict[str, Measure] = {}
    for name, coefficients in written.items():
        found[f"participation, {name}"] = participation(coefficients)
        found[f"participation of power 1, {name}"] = participation(coefficients, power=1)
        found[f"Hoyer sparsity, {name}"] = hoyer(coefficients)
    found["high frequencies"] = high_frequencies(perturbations)
    if images.shape[1] == 3:
        found["colour"] = colour(perturbations)
    found["on the image's edges"] = on_edges(perturbations, images)
    found["on another image's edges"] = on_edges(perturbations, images.roll(1, 0))
    return found


def _length(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)


def _scaled(values: Tensor) -> Tensor:
    """Each row by its own largest magnitude, in one axis: fourth powers of small numbers would underflow."""
    flat = values.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    return flat / largest.where(largest > 0, 1.0)


def _cosines(size: int, like: Tensor) -> Tensor:
    """The matrix of the orthonormal cosine transform of type II."""
    place = torch.arange(size, device=like.device, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)


def _patches(images: Tensor, size: int, seed: int) -> Tensor:
    """Patches as columns, (c p², count): an equal number from each image, at random places."""
    if images.dim() != 4 or not len(images) or min(images.shape[2:]) < size:
        raise ImagesError(f"patches of {size} × {size} pixels do not fit into images of {tuple(images.shape)}")
    places = torch.arange(len(images), device=images.device)
    count = (images.shape[2] - size + 1) * (images.shape[3] - size + 1)
    each = min(count, max(1, LEARNED_FROM // len(images)))
    chosen = randomness.uniform((count,), seed, places).argsort(1)[:, :each]
    columns = [
        unfold(some, size).gather(2, these[:, None].expand(-1, images.shape[1] * size * size, -1))
        for some, these in zip(images.split(100), chosen.split(100), strict=True)
    ]
    return torch.cat(columns).transpose(0, 1).flatten(1)[:, :LEARNED_FROM]
