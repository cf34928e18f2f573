"""Is it the question that was meant? Normalisation, labels, copies, buffers, radius."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.data import load
from bessemer.evaluation import evaluate, sanity
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


def test_a_buffer_that_is_put_in_anothers_place_has_changed_too(plain, pair):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.inner(x)

    model = Counting()
    assert sign(evaluate(model, pair, "quick", Linf(0.05)), "evaluation mode is at rest").verdict == "note"
    assert model.calls == 0


def test_labels_that_are_all_wrong_are_no_matter_of_normalisation(plain, pair):
    """Under a wrong normalisation the model may answer always the same, and be right by chance where it never was."""
    images, labels = pair
    right = plain(images).argmax(1) == labels
    found = evaluate(plain, (images[right], (labels[right] + 1) % 10), "quick", Linf(0.05))
    assert sign(found, "labels fit").verdict == "doubt"
    assert sign(found, "preprocessing fits").verdict == "trust"


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_images_are_too_few_to_tell(plain, pair, count):
    images, _ = pair
    found = evaluate(plain, (images[:count], plain(images[:count]).argmax(1)), "noise", batch_size=2)
    finding = sign(found, "labels fit")
    if count == 1:
        assert (finding.verdict, finding.meaning[:14]) == ("note", "Too few images")
    else:
        assert finding.verdict == "trust"
    assert not [each for each in found.findings if each.name == "every class is asked about"]


def test_a_model_that_is_right_about_all_is_spared_images_outside_the_box(plain, pair):
    """Steps through integers may end the whole process on a GPU where they are asked about what is no pixel."""
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append((x.min().item(), x.max().item()))
            return plain(x)

    images, _ = pair
    evaluate(Watching(), (images, plain(images).argmax(1)), "quick", Linf(0.05))
    assert min(seen)[0] >= 0
    assert max(high for _, high in seen) <= 1


def test_images_that_lie_class_by_class_are_noticed_where_only_the_first_were_judged(plain):
    images, labels = load("digits").test.at(slice(0, 300))
    order = labels.argsort(stable=True)
    found = evaluate(plain, (images[order], labels[order]), "noise", samples=50)
    finding = sign(found, "every class is asked about")
    assert finding.verdict == "note"
    assert finding.figure == "the 50 images are of 2 of 10 classes"
    mixed = evaluate(plain, (images, labels), "noise", samples=20)
    assert not [each for each in mixed.findings if each.name == "every class is asked about"]
    # so many classes that a binomial coefficient is no float
    many = replace(evaluate(plain, (images, labels), "noise", samples=200), classes=[str(name) for name in range(8000)])
    many = replace(many, label=np.arange(200))
    assert not [each for each in sanity.findings(many) if each.name == "every class is asked about"]
