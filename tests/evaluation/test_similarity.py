import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.metrics import structural_similarity

from bessemer.errors import ImagesError, UsageError
from bessemer.evaluation.similarity import C1, C2, pass_score, similarity, ssim


def smooth_images(n, channels=1, side=28, seed=0):
    """Soft blobs in [0, 1]."""
    noise = np.random.default_rng(seed).normal(size=(n, channels, side, side))
    blobs = gaussian_filter(noise, (0, 0, 3, 3), mode="wrap")
    low, high = blobs.min((1, 2, 3), keepdims=True), blobs.max((1, 2, 3), keepdims=True)
    return (blobs - low) / (high - low)


def noisy(images, size=0.1, seed=1):
    return np.clip(images + size * np.random.default_rng(seed).normal(size=images.shape), 0, 1)


def reference(first, second):
    """skimage's whole map, averaged with its borders, on one channel of grey levels."""
    _, whole = structural_similarity(
        first, second, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return whole.mean()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (2, 11)])
def test_ssim_equals_skimages_whole_map_averaged_over_channels(channels, side):
    images = smooth_images(4, channels, side) * 255
    changed = noisy(images / 255) * 255
    expected = [
        np.mean([reference(a, b) for a, b in zip(one, other, strict=True)])
        for one, other in zip(changed, images, strict=True)
    ]
    np.testing.assert_allclose(ssim(changed, images), expected, rtol=0, atol=1e-6)


def test_ssim_of_an_image_smaller_than_the_window_mirrors_it_again_and_again():
    first, second = 255 * np.random.default_rng(0).random((2, 1, 1, 4, 3))
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        padded = np.pad(x, 5, mode="symmetric")
        return np.array([[(window * padded[i : i + 11, j : j + 11]).sum() for j in range(3)] for i in range(4)])

    x, y = first[0, 0], second[0, 0]
    spread = mean(x * x) + mean(y * y) - mean(x) ** 2 - mean(y) ** 2
    whole = (2 * mean(x) * mean(y) + C1) / (mean(x) ** 2 + mean(y) ** 2 + C1)
    whole *= (2 * (mean(x * y) - mean(x) * mean(y)) + C2) / (spread + C2)
    np.testing.assert_allclose(ssim(first, second), whole.mean())


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (1, 8), (1, 1)])
def test_an_image_scores_exactly_1_with_itself(channels, side):
    images = torch.rand(5, channels, side, side)
    found = similarity(images, images.clone())
    assert found.scores.dtype == torch.float64
    assert found.scores.tolist() == [1.0] * 5
    assert found.converged.all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_by_one_pixel_is_aligned_away(channels):
    images = np.repeat(smooth_images(8), channels, axis=1)
    shifted = np.concatenate([images[..., :1], images[..., :-1]], axis=3)
    plain = ssim(shifted * 255, images * 255)
    found = similarity(shifted, images)
    assert found.converged.all()
    assert plain.mean() < 0.95
    assert (1 - found.scores.numpy() < (1 - plain) / 3).all()
    assert found.scores.min() > 0.96


def test_a_change_of_perspective_is_aligned_away():
    image = smooth_images(1, side=48)
    down, right = np.mgrid[:48, :48]
    depth = 6e-4 * right - 4e-4 * down + 1
    places = (-0.03 * right + 0.96 * down + 1.8) / depth, (1.04 * right + 0.05 * down - 1.8) / depth
    tilted = map_coordinates(image[0, 0], places, mode="reflect").clip(0, 1)[None, None]
    plain = ssim(tilted * 255, image * 255)[0]
    assert plain < 0.93
    assert pass_score(tilted, image)[0] > 0.97


def test_more_noise_scores_lower():
    images = smooth_images(6)
    scores = [pass_score(noisy(images, size), images).mean().item() for size in (0.01, 0.05, 0.2)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_image_stays_where_it_is_and_is_counted(value):
    constant = np.full((2, 1, 28, 28), value)
    other = np.concatenate([constant[:1], smooth_images(1)])
    found = similarity(constant, other)
    assert found.converged.tolist() == [True, False]  # equal images need no alignment
    np.testing.assert_array_equal(found.scores.numpy(), ssim(constant * 255, other * 255))


def test_unrelated_images_that_do_not_align_score_as_they_lie():
    images = np.random.default_rng(0).random((40, 1, 28, 28))
    found = similarity(1 - images, images)
    failed = ~found.converged.numpy()
    assert failed.any()
    np.testing.assert_array_equal(found.scores.numpy()[failed], ssim((1 - images) * 255, images * 255)[failed])


def test_threads_change_nothing():
    images = smooth_images(50)
    changed = noisy(images)
    assert torch.equal(pass_score(changed, images, threads=1), pass_score(changed, images, threads=3))


def test_an_image_scores_the_same_alone_as_in_a_batch():
    images = smooth_images(20)
    changed = noisy(images)
    alone = torch.cat([pass_score(changed[[i]], images[[i]]) for i in range(20)])
    assert torch.equal(pass_score(changed, images), alone)


def test_tensors_and_arrays_score_the_same():
    images = smooth_images(3)
    changed = noisy(images)
    tensors = torch.from_numpy(changed).requires_grad_(), torch.from_numpy(images)
    assert torch.equal(pass_score(*tensors), pass_score(changed, images))


def test_no_images_give_no_scores():
    assert pass_score(torch.zeros(0, 1, 28, 28), torch.zeros(0, 1, 28, 28)).shape == (0,)


def test_opencv_keeps_its_number_of_threads():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        pass_score(smooth_images(1), smooth_images(1, seed=5))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    ("adversarial", "message"),
    [
        (torch.zeros(2, 1, 28, 27), r"\(2, 1, 28, 27\) cannot be compared with images of \(2, 1, 28, 28\)"),
        (torch.zeros(1, 28, 28), r"should be \(N, C, H, W\) floats"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
        (torch.full((2, 1, 28, 28), 255.0), "run from 255 to 255"),
        (torch.full((2, 1, 28, 28), torch.nan), "run from nan to nan"),
    ],
    ids=["shape", "axes", "grey levels", "range", "nan"],
)
def test_images_that_cannot_be_compared_are_refused(adversarial, message):
    with pytest.raises(ImagesError, match=message):
        pass_score(adversarial, torch.zeros(2, 1, 28, 28))


def test_no_threads_are_refused():
    with pytest.raises(UsageError, match="threads should be 1 or more, not 0"):
        pass_score(smooth_images(1), smooth_images(1), threads=0)
