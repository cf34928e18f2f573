"""Can one network serve clean and adversarial images, each through batch norms of its own?

Both go through the same convolutions, and a mixture norm normalises each kind by itself. Beside it: what training on
either kind alone gives, and what mixing them in one batch norm costs.
"""

import torch
from torch import nn

import bessemer as bs
from bessemer import layers
from bessemer.data import Batches
from bessemer.training import SGD, Adversarial, Method, Mixture, Plain, fit
from bessemer.training.schedules import OneCycle

ATTACK = bs.attacks.PGD(bs.Linf(0.2), steps=5)
digits = bs.data.load("digits")


def network() -> nn.Module:
    """Three convolutions with batch norm, the same first weights each time."""
    torch.manual_seed(0)
    parts = []
    for channels, out, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        parts += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(model: nn.Module, method: Method) -> nn.Module:
    """Two hundred updates by a training method."""
    optimizer = SGD(model.parameters(), lr=0.05, weight_decay=5e-4)
    fit(model, Batches(digits.train, 64), method, optimizer, OneCycle(), 0.05, 200, lambda done, loss: True)
    return model.eval()


def judged(name: str, model: nn.Module) -> None:
    """What is right without an attack, and what stands under four of them."""
    found = bs.evaluate(model, digits, suite="quick", threat=bs.Linf(0.2), samples=200, name=name)
    print(f"{name:42} clean {found.clean_accuracy().value:6.1%}   standing {found.worst_case().value:6.1%}")


if __name__ == "__main__":
    judged("clean images alone", trained(network(), Plain()))
    judged("attacked images alone", trained(network(), Adversarial(ATTACK)))
    judged("both, one batch norm", trained(network(), Adversarial(ATTACK, clean_share=1)))
    mixed = trained(layers.mixture_norm(network()), Mixture(ATTACK))
    for branch in layers.branches(mixed):
        judged(f"both, mixture norm, {branch} branch", layers.route(mixed, branch))
