"""BANG's weight gradients by way of per-sample gradients (Opacus, torch.func) against balancing: time and memory.

    pip install -e '.[bench]'
    python benchmarks/per_sample.py

A per-sample-gradient library can balance too: it keeps N weight gradients, which are then weighted by BANG's rates and
summed; the rates need the gradients at the layers' outputs, which hooks take down. All compute the same forward and
backward pass of the same batch and end in the same gradients (asserted), balance in channels_last, the layout Bessemer
trains in, the libraries in the default one. Target: balancing at least 3 times as fast. Peak memory is what torch
allocates beyond what is there before the pass; an ordinary step's stands beside it (target: at most 1.05 of that).
Writes results/benchmarks-per-sample.json.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from bessemer.allocation import keep_freed_memory
from bessemer.layers import balance, rates
from bessemer.layers.balance import LINEAR_LAYERS, sample_norms
from bessemer.models import CifarQuick, LeNet
from bessemer.records import provenance, write_whole
from timing import ratios

EPSILON = 0.8
Gradients = dict[str, Tensor]


def fresh(make: Callable[..., nn.Module], layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """A network whose activations are not overwritten: neither library can have that."""
    torch.manual_seed(0)
    model = make(dropout=0).to(memory_format=layout)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are balanced, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LINEAR_LAYERS)}


def weighted(samples: Gradients, kappas: Gradients) -> Gradients:
    """Equation 6: per-sample gradients of the mean loss's parts, each times its layer's rate, summed."""
    found = {}
    for name, parts in samples.items():
        norms = sample_norms(kappas[name.rpartition(".")[0]])
        found[name] = torch.tensordot(rates(norms, 1.0, EPSILON).to(parts.dtype), parts, dims=1)
    return found


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Gradients]:
    """An ordinary backward pass; with balance attached, ours."""

    def step() -> Gradients:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return step


def opacus(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Gradients]:
    """Opacus keeps each sample's gradient of each parameter as `grad_sample`, for a mean loss times N."""
    kappas: Gradients = {}

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda gradient: kappas.__setitem__(name, gradient))

        return hook

    for name, layer in layers_of(model).items():
        layer.register_forward_hook(listen(name))
    sampled = GradSampleModule(model)

    def step() -> Gradients:
        sampled.zero_grad()
        cross_entropy(sampled(images), labels).backward()
        samples = {name: parameter.grad_sample / len(images) for name, parameter in model.named_parameters()}
        return weighted(samples, kappas)

    return step


def func(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Gradients]:
    """`vmap(grad)` over samples; zeros added to the layers' outputs are arguments too, and their gradients kappa."""
    taps: Gradients = {}
    shapes: dict[str, torch.Size] = {}
    layers = layers_of(model)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: shapes.__setitem__(name, output.shape))
    model(images[:1])
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: output + taps[name])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: Gradients, added: Gradients, image: Tensor, label: Tensor) -> Tensor:
        taps.update(added)
        return cross_entropy(functional_call(model, {**parameters, **buffers}, (image[None],)), label[None])

    samples_of = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0, 0))

    def step() -> Gradients:
        zeros = {name: torch.zeros(len(images), *shape) for name, shape in shapes.items()}
        samples, kappas = samples_of(parameters, zeros, images, labels)
        return weighted({name: parts / len(images) for name, parts in samples.items()}, kappas)

    return step


def peak(step: Callable[[], Gradients]) -> float:
    """How many MB torch holds at most during a call, beyond what it held before."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return round(held.cumsum(0).max().item() / 1e6, 1)


def main() -> None:
    """Measure, print, write."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_flush_denormal(True)
    keep_freed_memory()
    began = time.monotonic()
    found: dict[str, dict] = {}
    for name, make, shape in (
        ("LeNet, batch 64", LeNet, (64, 1, 28, 28)),
        ("CIFAR-quick, batch 100", CifarQuick, (100, 3, 32, 32)),
    ):
        torch.manual_seed(0)
        images, labels = torch.rand(shape), torch.randint(0, 10, shape[:1])
        balanced = fresh(make, torch.channels_last)
        with balance(balanced, 1.0, EPSILON):
            ours = plain(balanced, images, labels)
            others = {
                "Opacus": opacus(fresh(make), images, labels),
                "torch.func": func(fresh(make), images, labels),
            }
            expected = ours()
            errors = {}
            for library, step in others.items():
                found_here = step()
                apart = [(found_here[key] - value).norm() / value.norm() for key, value in expected.items()]
                errors[library] = float(f"{max(apart):.1e}")
                assert errors[library] < 1e-4, f"{library}, {name}: gradients differ by {errors[library]}"
            memory = {"balance": peak(ours), **{library: peak(step) for library, step in others.items()}}
            timed = ratios(others, ours, pairs=9)
        memory["plain"] = peak(plain(fresh(make, torch.channels_last), images, labels))
        found[name] = {
            "seconds / balance's": timed,
            "peak MB": memory,
            "largest relative difference": errors,
        }
        print(f"{name}: {found[name]}", flush=True)
    facts = provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1))
    text = json.dumps({"per sample": found, "provenance": facts}, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-per-sample.json", text.encode() + b"\n")


if __name__ == "__main__":
    main()
