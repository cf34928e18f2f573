"""Models whose nearest misclassified point is known, and small networks: what the tests of minimal attacks share."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from bessemer.data import load


@dataclass(frozen=True)
class Linear:
    """Logits that are linear in the pixels, images, and the exact distance of each image to each other class."""

    weight: torch.Tensor
    bias: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor

    def __call__(self, x):
        return x.flatten(1) @ self.weight.T + self.bias

    def distances(self, norm):
        """|margin| / dual norm of the weights, image by class, in float64; infinite for the own class."""
        dual = {"L2": 2, "Linf": 1}[norm]
        found = torch.full((len(self.images), len(self.weight)), torch.inf, dtype=torch.float64)
        for i, label in enumerate(self.labels.tolist()):
            for other in range(len(self.weight)):
                if other != label:
                    normal = (self.weight[label] - self.weight[other]).double()
                    lead = normal @ self.images[i].flatten().double() + (self.bias[label] - self.bias[other]).double()
                    found[i, other] = lead / torch.linalg.vector_norm(normal, dual)
        return found

    def exact(self, norm):
        return self.distances(norm).amin(1)

    def to_reached(self, norm, adversarial):
        """The exact distance to the class that an attack ended in."""
        return self.distances(norm).gather(1, self(adversarial).argmax(1)[:, None])[:, 0]


def linear(shape, classes, count, seed=0, low=0.2, high=0.8, near=0.05, far=0.3):
    """Images on grey levels between `low` and `high`, cut to [0, 1], `near` to `far` away (L2) from another class."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    weight = 3 * torch.randn(classes, size, generator=generator)
    images = low + (high - low) * torch.rand(400, *shape, generator=generator)
    images = (images.clamp(0, 1) * 255).round() / 255
    bias = -weight.sum(1) / 2
    labels = (images.flatten(1) @ weight.T + bias).argmax(1)
    exact = Linear(weight, bias, images, labels).exact("L2")
    fit = ((exact > near) & (exact < far)).nonzero()[:count, 0]
    assert len(fit) == count, "too few images at that distance"
    return Linear(weight, bias, images[fit], labels[fit])


def size(norm, change):
    return torch.linalg.vector_norm(change.flatten(1).double(), {"L2": 2, "Linf": torch.inf}[norm], dim=1)


def clipped_ray(problem, norm):
    """The nearest misclassified point among clip(x + t · steepest), over all t and all other classes, by scanning."""
    best = torch.full((len(problem.images),), torch.inf, dtype=torch.float64)
    scales = torch.linspace(0, 4, 8001)[:, None]
    for i, label in enumerate(problem.labels.tolist()):
        for other in range(len(problem.weight)):
            if other != label:
                normal = (problem.weight[other] - problem.weight[label])[None]
                direction = normal.sign() if norm == "Linf" else normal / normal.norm()
                ray = (problem.images[i].flatten() + scales * direction).clamp(0, 1)
                wrong = (problem(ray).argmax(1) != label).nonzero()[:, 0]
                if len(wrong):
                    change = ray[wrong[:1]] - problem.images[i].flatten()
                    best[i] = min(best[i], size(norm, change)[0])
    return best


def digits(count):
    """A network of one hidden layer, trained for a second, and test images that it gets right."""
    data = load("digits")
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = data.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    images, labels = data.test.at(slice(0, 2 * count))
    right = (model(images).argmax(1) == labels).nonzero()[:count, 0]
    assert len(right) == count
    return model, images[right], labels[right]


def small():
    """A network with bends everywhere, and images with their predictions."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).eval().requires_grad_(False)
    images = (torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return model, images, model(images).argmax(1)


def flat(x):
    """No pixel matters: every gradient is zero."""
    return x.flatten(1)[:, :3] * 0 + torch.tensor([3.0, 1.0, 0.0])


def broken(x):
    """Class 0 until the first pixel is above 0.55, NaN beyond."""
    first = x.flatten(1)[:, :1]
    return torch.cat([0.6 - first, first - 0.6, first - 2], 1).where(first < 0.55, torch.nan)


def fails_cleanly(attack):
    """A zero gradient, or an answer that is no number, leaves the original; nothing becomes NaN."""
    images = torch.full((4, 1, 2, 2), 128 / 255)
    labels = torch.zeros(4, dtype=torch.int64)
    outcome = attack.run(flat, images, labels, until_success=True)
    assert torch.equal(outcome.images, images)
    assert (outcome.zero_gradients > 0).all()
    assert torch.equal(attack(broken, images, labels), images)


def stays_within_its_passes(attack, target=None):
    """No image was part of more passes than the attack says, and some image was part of many."""
    model, images, labels = small()
    for early in (False, True):
        outcome = attack.run(model, images, labels, until_success=early, target=target)
        forwards, backwards = attack.passes(5)
        assert 1 < outcome.forwards.max() <= forwards
        assert 0 < outcome.backwards.max() <= backwards


def wrong_to_begin_with(attack):
    """An image that is misclassified already is its own nearest one, and a batch of such asks no more questions."""
    model, images, labels = small()

    def never_empty(x):
        assert len(x), "the model was asked about no image"
        return model(x)

    mixed = torch.where(torch.arange(12) % 3 == 0, (labels + 1) % 5, labels)
    found = attack(never_empty, images, mixed)
    assert torch.equal(found[::3], images[::3])
    assert (model(found).argmax(1) != mixed).all()
    outcome = attack.run(never_empty, images, (labels + 1) % 5)
    assert torch.equal(outcome.images, images)
    assert outcome.forwards.tolist() == [1] * 12
