"""Balanced gradients by the equations of the paper, naively."""

import torch
from torch.nn.functional import cross_entropy

from bessemer.layers.balance import LINEAR_LAYERS


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def balanced_by_definition(model, images, labels, beta, epsilon, misclassified=1.0):
    """Equations 2 to 6, naively: one backward pass per sample, one contribution per call of a layer.

    Returns the mean balanced gradient of each parameter of each linear layer, and the mean gradient of the others.
    """
    calls = []

    def record(layer, inputs, output):
        output.retain_grad()
        calls.append((layer, inputs[0].detach(), output))
        # an in-place ReLU must not overwrite what we look at
        return output.clone()

    layers = [module for module in model.modules() if isinstance(module, LINEAR_LAYERS)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    cross_entropy(logits, labels, reduction="sum").backward()
    wrong = logits.argmax(1) != labels
    total = {name: parameter.grad / len(images) for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in layers:
        for parameter in layer.parameters():
            total[names[id(parameter)]].zero_()
    for layer, inputs, output in calls:
        norms = [output.grad[i].norm().item() for i in range(len(images))]
        for i in range(len(images)):
            if norms[i] == 0:
                continue
            r = norms[i] / max(norms)
            eta = (1 / r) ** ((epsilon * misclassified if wrong[i] else epsilon) * (1 - r))
            own = list(layer.parameters())
            parts = torch.autograd.grad(layer(inputs[i : i + 1]), own, output.grad[i : i + 1])
            for parameter, part in zip(own, parts, strict=True):
                total[names[id(parameter)]] += beta * eta * part / len(images)
    return total
