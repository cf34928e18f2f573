"""What a neuron looks for, as an image: activation maximisation, from the same start before and after training.

    u ← (1 − decay) u + step_size √n g / |g|₂,    x = 1/2 + u,    g = gradient of the neuron's activation at x

After Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190: gradient ascent on the pixels, and weight decay
as the only regulariser. What that makes of a network trained on clean images is mostly noise, and this noise is the
finding: blur and jitter, which hide it, are off unless asked for (`Regularise`).

Two choices are ours. Decay pulls towards mid-grey, so what no gradient holds up fades, the start included. And the
gradient counts by its direction alone: where the ascent rests, u lies along g at a root mean square of step_size /
decay (less where pixels meet black or white), which is where weight decay of some strength would rest too. Fixing the
contrast and not that strength shows two networks alike whose activations have different scales.

A neuron of a convolution is one place of its channel, the centre: the theory speaks of neurons, and in the first layer
its image is the filter itself. (The channel's mean asks for a texture instead.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bessemer import randomness
from bessemer.arithmetic import exact
from bessemer.attacks import borrowed, check_images
from bessemer.errors import ImagesError, ModelError, UsageError, unknown

CHUNK = 128  # images that climb at once


@dataclass(frozen=True)
class Regularise:
    """Smoother images than the gradient alone asks for.

    blur: standard deviation in pixels of a Gaussian blur after every `every` steps, 0 for none (Yosinski et al.,
    "Understanding neural networks through deep visualization", 2015). jitter: the network is shown the image shifted
    around its edges by up to so many pixels, anew at each step, 0 for none (Mordvintsev, Olah and Tyka,
    "Inceptionism", 2015).
    """

    blur: float = 0.6
    every: int = 4
    jitter: int = 1

    def __post_init__(self) -> None:
        if self.blur < 0 or self.every < 1 or self.jitter < 0:
            raise UsageError(f"{self}: blur and jitter should be 0 or more, every 1 or more")

    def shift(self, step: int, seed: int, like: Tensor) -> tuple[int, int]:
        """By how many rows and columns the network sees all images shifted at this step."""
        place = torch.tensor([step], device=like.device)
        down, right = (int(randomness.integers(2 * self.jitter + 1, seed, place, stream=axis)) for axis in (1, 2))
        return down - self.jitter, right - self.jitter

    def blurred(self, images: Float[Tensor, "n c h w"], step: int) -> Float[Tensor, "n c h w"]:
        """The images after a step: blurred if its turn has come."""
        if self.blur == 0 or (step + 1) % self.every:
            return images
        reach = min(max(1, math.ceil(3 * self.blur)), *(size - 1 for size in images.shape[2:]))
        taps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        kernel = torch.exp(-(taps**2) / (2 * self.blur**2))
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
        padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
        rows = functional.conv2d(padded, kernel, groups=images.shape[1])
        return functional.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


@exact()
def maximise(
    model: nn.Module,
    layer: str,
    units: Sequence[int],
    start: Float[Tensor, "*n c h w"] | tuple[int, int, int] | None = None,
    *,
    steps: int = 256,
    step_size: float = 0.005,
    decay: float = 0.02,
    regularise: Regularise | None = None,
    seed: int = 0,
) -> Float[Tensor, "units c h w"]:
    """An image in [0, 1] for each of some neurons of a layer: what excites it most.

    layer: a name from `model.named_modules()`; its output is (N, units, …), and of further axes the centre counts. Name
    a layer before its ReLU: behind it, a neuron that is silent at the start has no gradient.
    start: one image for all neurons (C, H, W), or one for each; or the shape (C, H, W) of random ones (a normal
    distribution about mid-grey, deviation 0.1, keyed by seed and unit, so that two networks get the same); or nothing
    where the model has an `image_shape`.
    step_size: root mean square move of a pixel in a step, in [0, 1] units. decay: share of its distance from mid-grey
    that each pixel loses in a step.

    The model comes back as it was. Raises `UsageError` for a layer or unit that is not there, or a layer that gives no
    tensor or is called more than once.
    """
    module = _layer(model, layer)
    if steps < 0 or not 0 <= decay <= 1:
        raise UsageError(f"steps should be 0 or more and decay between 0 and 1, not {steps} and {decay}")
    images = _starts(model, units, start, seed)
    with torch.inference_mode(False), torch.enable_grad(), borrowed(model, images.device, seed):
        width = _width(model, module, layer, images[:1])
        wrong = [unit for unit in units if not 0 <= unit < width]
        if wrong:
            raise UsageError(f"{layer} has the units 0 to {width - 1}, but unit {wrong[0]} was asked for")
        chosen = torch.as_tensor(units, device=images.device)
        climbed = [
            _climb(model, module, some, these, steps, step_size, decay, regularise, seed)
            for some, these in zip(images.split(CHUNK), chosen.split(CHUNK), strict=True)
        ]
    return torch.cat(climbed)


@exact()
def responses(model: nn.Module, layer: str, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n units"]:
    """How strongly images excite the neurons of a layer (of a convolution, those at the centre).

    The model comes back as it was. Raises `UsageError` as `maximise` does.
    """
    module = _layer(model, layer)
    check_images(images)
    with torch.no_grad(), borrowed(model, images.device, 0):
        _width(model, module, layer, images[:1])
        return torch.cat([_activation(model, module, some).clone() for some in images.split(CHUNK)])


def _climb(
    model: nn.Module,
    module: nn.Module,
    images: Tensor,
    units: Tensor,
    steps: int,
    step_size: float,
    decay: float,
    regularise: Regularise | None,
    seed: int,
) -> Tensor:
    move = step_size * math.sqrt(images[0].numel())
    for step in range(steps):
        x = images.detach().requires_grad_()
        shift = (0, 0) if regularise is None else regularise.shift(step, seed, images)
        seen = x if shift == (0, 0) else x.roll(shift, (2, 3))
        activation = _activation(model, module, seen).gather(1, units[:, None]).sum()
        if not activation.requires_grad:
            raise ModelError(
                "the layer's output has no gradient at the images (a detach, a NumPy or an integer step before it?)"
            )
        (gradient,) = torch.autograd.grad(activation, x)
        images = 0.5 + (1 - decay) * (images - 0.5) + move * _direction(gradient)
        images = (images if regularise is None else regularise.blurred(images, step)).clamp(0, 1)
    return images.detach()


def _direction(gradient: Tensor) -> Tensor:
    """Each image's gradient at length 1; 0 where it is 0. Its own largest value goes out first: squares underflow."""
    gradient = gradient.nan_to_num(nan=0.0)
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.where(largest > 0, 1.0)
    length = scaled.square().sum((1, 2, 3), keepdim=True).sqrt()
    return scaled / length.where(length > 0, 1.0)


class _Reached(Exception):  # noqa: N818
    """What a layer gave: the layers behind it need not be asked."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def _activation(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The layer's output at the centre of all axes but the first two, (N, units)."""

    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        model(images)
    except _Reached as reached:
        output = reached.output
    finally:
        handle.remove()
    for size in output.shape[2:]:
        output = output[:, :, size // 2]
    return output


def _layer(model: nn.Module, layer: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(f"layers can be named in an nn.Module alone, not in a {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        raise unknown("layer", layer, layers)
    return layers[layer]


def _width(model: nn.Module, module: nn.Module, layer: str, image: Tensor) -> int:
    """How many units the layer has; refuses one that cannot be watched."""
    outputs: list[object] = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise UsageError(
            f"{layer} is called {len(outputs)} times in one pass, so its name does not say which output is meant; "
            "name a layer that is called once"
        )
    output = outputs[0]
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != 1:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise UsageError(f"{layer} should give a tensor (N, units, …) for N images, not one of {found} for one image")
    return output.shape[1]


def _starts(model: nn.Module, units: Sequence[int], start: Tensor | tuple[int, ...] | None, seed: int) -> Tensor:
    """One starting image per unit, on the model's device."""
    if isinstance(start, Tensor):
        if start.dim() not in (3, 4) or (start.dim() == 4 and len(start) not in (1, len(units))):
            raise ImagesError(f"start should be one image (C, H, W) or one per unit, not {tuple(start.shape)}")
        images = start.detach().expand(len(units), *start.shape[-3:]).clone()
        check_images(images)
        return images
    shape = getattr(model, "image_shape", None) if start is None else start
    if shape is None:
        raise UsageError("the model does not say what images it takes; give a start, an image or its shape (C, H, W)")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    noise = randomness.normal(tuple(shape), seed, torch.as_tensor(units, dtype=torch.int64, device=device))
    return (0.5 + 0.1 * noise).clamp(0, 1)
