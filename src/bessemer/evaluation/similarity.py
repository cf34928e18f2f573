"""PASS: how alike two images look once the one is laid over the other.

    PASS(adversarial, image) = SSIM(warp(adversarial), image)

A. Rozsa, E. Rudd and T. Boult, "Adversarial Diversity and Hard Positive Generation" (arXiv:1605.01775),
section 3. The warp is the homography with the largest enhanced correlation coefficient (G. Evangelidis and E.
Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", 2008), found on
luminance and applied to every channel. SSIM is the structural similarity of Z. Wang et al. ("Image quality
assessment", 2004).

The papers leave settings open that move the score by hundredths; ours are the constants below:

- alignment starts from the identity, smooths both images with a 5-tap Gaussian, and stops after 100 steps or
  once the coefficient changes by less than 1e-6;
- pixels are interpolated linearly; where the warp looks beyond the image, it sees the image mirrored;
- SSIM takes an 11-tap Gaussian (sigma 1.5) on grey levels 0 … 255, mirrored at the borders, and averages the
  *whole* map, borders included, then the channels. Images below 11 pixels a side use the same filter,
  mirrored more than once.

An alignment that lowers the score still counts: that is the definition. One that does not converge leaves the
image where it is, and is counted: OpenCV gives up on constant and on uncorrelated images.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import correlate1d
from torch import Tensor

from bessemer.errors import ImagesError, UsageError

Images = Float[Tensor, "n c h w"] | npt.NDArray[np.floating]
Levels = npt.NDArray[np.float64]  # (N, C, H, W), grey levels 0 … 255

ALIGNMENT_STEPS = 100
ALIGNMENT_TOLERANCE = 1e-6
ALIGNMENT_SMOOTHING = 5  # taps of the Gaussian that findTransformECC puts over both images
WARP_BORDER = cv2.BORDER_REFLECT
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

SSIM_TAPS = 11
SSIM_SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2

CHUNK = 16  # images a thread works on at once


@dataclass(frozen=True)
class Similarity:
    """PASS of each image, and which alignments converged."""

    scores: Float[Tensor, " n"]
    converged: Bool[Tensor, " n"]


def pass_score(adversarial: Images, images: Images, threads: int | None = None) -> Float[Tensor, " n"]:
    """PASS of each adversarial image with its original: float64, shape (N,), 1 for equal images.

    adversarial, images: tensors or arrays of shape (N, C, H, W) in [0, 1]. threads: as many as torch uses, by
    default. Raises `ImagesError` for images of different shapes or outside [0, 1].
    """
    return similarity(adversarial, images, threads).scores


def similarity(adversarial: Images, images: Images, threads: int | None = None) -> Similarity:
    """`pass_score`, together with which alignments converged."""
    moved, fixed = _levels("adversarial images", adversarial), _levels("images", images)
    if moved.shape != fixed.shape:
        raise ImagesError(f"adversarial images of shape {moved.shape} cannot be compared with images of {fixed.shape}")
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise UsageError(f"threads should be 1 or more, not {threads}")
    chunks = [slice(first, first + CHUNK) for first in range(0, len(fixed), CHUNK)]
    with _one_opencv_thread(), ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(lambda chunk: _pass(moved[chunk], fixed[chunk]), chunks))
    scores = np.concatenate([np.empty(0), *(score for score, _ in done)])
    converged = np.concatenate([np.empty(0, bool), *(flags for _, flags in done)])
    return Similarity(torch.from_numpy(scores), torch.from_numpy(converged))


def ssim(first: Levels, second: Levels) -> npt.NDArray[np.float64]:
    """Structural similarity of grey-level images (N, C, H, W): the mean of the whole map, shape (N,)."""
    mean_1, mean_2 = _local_mean(first), _local_mean(second)
    variance_1 = _local_mean(first * first) - mean_1 * mean_1
    variance_2 = _local_mean(second * second) - mean_2 * mean_2
    covariance = _local_mean(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1 * mean_1 + mean_2 * mean_2 + C1)
    structure = (2 * covariance + C2) / (variance_1 + variance_2 + C2)
    return (luminance * structure).mean((1, 2, 3))


def align(adversarial: Levels, image: Levels) -> tuple[Levels, bool]:
    """One image (C, H, W) warped onto another, and whether that converged; if not, the image as it was."""
    if np.array_equal(adversarial, image):
        return adversarial, True
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ALIGNMENT_STEPS, ALIGNMENT_TOLERANCE)
    start = np.eye(3, dtype=np.float32)
    try:
        coefficient, homography = cv2.findTransformECC(  # type: ignore[call-overload]  # the mask may be None
            _luminance(image),
            _luminance(adversarial),
            start,
            cv2.MOTION_HOMOGRAPHY,
            criteria,
            None,
            ALIGNMENT_SMOOTHING,
        )
    except cv2.error:
        return adversarial, False
    if not (np.isfinite(coefficient) and np.isfinite(homography).all()):
        return adversarial, False
    size = image.shape[2], image.shape[1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = [
        cv2.warpPerspective(channel.astype(np.float32), homography, size, flags=flags, borderMode=WARP_BORDER)
        for channel in adversarial
    ]
    return np.stack(warped).astype(np.float64), True


def _pass(moved: Levels, fixed: Levels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    aligned = [align(adversarial, image) for adversarial, image in zip(moved, fixed, strict=True)]
    warped = np.stack([image for image, _ in aligned])
    return ssim(warped, fixed), np.array([converged for _, converged in aligned])


def _luminance(image: Levels) -> npt.NDArray[np.float32]:
    """The brightness of an image (C, H, W): weighted for RGB, else the mean of its channels."""
    grey = np.tensordot(LUMINANCE, image, 1) if len(image) == len(LUMINANCE) else image.mean(0)
    return np.ascontiguousarray(grey, np.float32)


def _window() -> npt.NDArray[np.float64]:
    offsets = np.arange(SSIM_TAPS) - SSIM_TAPS // 2
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    return weights / weights.sum()


def _local_mean(images: Levels) -> Levels:
    """The Gaussian-weighted mean around every pixel, the image mirrored at its borders."""
    window = _window()
    return correlate1d(correlate1d(images, window, axis=3, mode="reflect"), window, axis=2, mode="reflect")


def _levels(name: str, images: Images) -> Levels:
    """Images in [0, 1] as grey levels in float64."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.double() if images.is_floating_point() else images).numpy()  # NumPy knows no bfloat16
    array = np.asarray(images)
    if array.ndim != 4 or not np.issubdtype(array.dtype, np.floating):
        raise ImagesError(f"{name} should be (N, C, H, W) floats in [0, 1], not {array.shape} {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ImagesError(f"{name} should lie in [0, 1] but run from {array.min():.3g} to {array.max():.3g}")
    return array.astype(np.float64) * 255


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """One OpenCV thread a call: the images are what runs in parallel."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
