"""Is it the question that was meant? Normalisation, labels, copies, buffers, radius."""

import pytest
import torch
from torch import nn

from bessemer.data import load
from bessemer.evaluation import evaluate
from bessemer.models import Normalize
from bessemer.threat import Linf


@pytest.fixture(scope="module")
def pair():
    return load("digits").test.at(slice(0, 120))


def trained(normalise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = load("digits").train.at(slice(None))
    images = normalise(images)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def plain():
    return trained(lambda images: images)


def sign(evaluation, name):
    return next(finding for finding in evaluation.findings if finding.name == name)


def test_a_sound_question_raises_nothing(plain, pair):
    found = evaluate(plain, pair, "quick", Linf(0.05))
    names = ("preprocessing fits", "labels fit", "images are distinct", "evaluation mode is at rest")
    assert [sign(found, name).verdict for name in names] == ["trust"] * 4
    assert not [finding for finding in found.findings if finding.name == "there is a radius"]


def test_a_model_that_wants_normalised_images_is_recognised(pair):
    """A digit and its negative: whoever was trained on pixels from -1 to 1 takes half-bright ones for dark."""

    class Centred(nn.Module):
        """Looks at the squares of its pixels, as larger networks do in their way."""

        def __init__(self):
            super().__init__()
            self.inner = trained(lambda images: (2 * images - 1).square())

        def forward(self, x):
            return self.inner(x.square())

    inner = Centred()
    finding = sign(evaluate(inner, pair, "quick", Linf(0.05)), "preprocessing fits")
    assert finding.verdict == "doubt"
    assert "after pixels from -1 to 1" in finding.figure
    assert "Normalize" in finding.advice
    outer = nn.Sequential(Normalize([0.5], [0.5]), inner)
    assert sign(evaluate(outer, pair, "quick", Linf(0.05)), "preprocessing fits").verdict == "trust"


def test_labels_in_another_order_are_noticed(plain, pair):
    images, labels = pair
    assert sign(evaluate(plain, (images, (labels + 1) % 10), "quick", Linf(0.05)), "labels fit").verdict == "doubt"


def test_copies_are_counted(plain, pair):
    images, labels = pair
    found = evaluate(plain, (torch.cat([images, images[:7]]), torch.cat([labels, labels[:7]])), "quick", Linf(0.05))
    assert sign(found, "images are distinct").verdict == "note"
    assert sign(found, "images are distinct").figure.startswith("7 of 127")


def test_buffers_that_change_in_evaluation_mode_are_noticed_and_put_back(plain, pair):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    model = Counting()
    assert sign(evaluate(model, pair, "quick", Linf(0.05)), "evaluation mode is at rest").verdict == "note"
    assert model.calls == 0


def test_a_radius_of_nothing_is_told(plain, pair):
    found = evaluate(plain, pair, "quick", Linf(0.0))
    assert found.worst_case() == found.clean_accuracy()
    assert sign(found, "there is a radius").verdict == "note"
