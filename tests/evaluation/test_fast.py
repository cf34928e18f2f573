"""The cheaper copy answers like the model, and nothing counts that the model has not confirmed."""

import copy

import pytest
import torch
from torch import nn

from bessemer.attacks import DDN, PGD, Transfer
from bessemer.errors import ModelError
from bessemer.evaluation import Suite, evaluate
from bessemer.evaluation.fast import _folded, cheaper
from bessemer.models import build
from bessemer.threat import Linf

THREAT = Linf(0.01)


class Block(nn.Module):
    """A short cut around two convolutions with batch norm."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block(8), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    for _ in range(3):
        model(torch.rand(64, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module")
def pair(model):
    images = torch.rand(80, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return images, model(images).argmax(1)


def test_the_copy_is_folded_and_answers_alike(model, pair):
    copy, done = cheaper(model, pair[0])
    assert done == "channels last, batch norm folded, bfloat16"
    logits = model(pair[0])
    assert (copy(pair[0]) - logits).abs().max() < 0.03 * logits.abs().max()
    assert copy(pair[0]).dtype == torch.float32
    assert isinstance(model[1], nn.BatchNorm2d), "the model itself is not touched"


def test_every_success_is_the_models_own(model, pair):
    found = evaluate(model, pair, Suite("s", {"PGD": PGD(THREAT, steps=10)}), fast=True)
    images = PGD(THREAT, steps=10).run(model, *pair, until_success=True, through=cheaper(model, pair[0])[0]).images
    assert (found.attack("PGD")["prediction"] == model(images).argmax(1).numpy()).all()
    turned = found.turned("PGD")
    # a point that only the model calls wrong was never claimed, and counts all the same
    assert (found.attack("PGD")["verifications"][turned] >= 1).mean() > 0.8
    assert turned.sum() > 10
    assert found.provenance["mode"].startswith("fast: ")


def test_a_copy_that_cries_wolf_fools_nobody(model, pair):
    """The search believes it has won at once; the model says no, and the search goes on."""

    def wolf(x):
        return model(x).roll(1, 1)

    outcome = PGD(THREAT, steps=10).run(model, *pair, until_success=True, through=wolf)
    believed = wolf(outcome.images).argmax(1) != pair[1]
    fooled = model(outcome.images).argmax(1) != pair[1]
    assert believed.sum() > fooled.sum()
    assert (outcome.verifications[~fooled] >= 10).all(), "each false success was checked, and none ended the search"


def test_fast_and_exact_find_nearly_the_same(model, pair):
    exact, fast = (evaluate(model, pair, "quick", THREAT, fast=flag).worst_case() for flag in (False, True))
    assert abs(exact.count - fast.count) <= 1
    assert 0 < exact.count < 80


def test_a_model_that_cannot_be_copied_or_answers_otherwise_is_refused(model, pair):
    with pytest.raises(ModelError, match="plain callable"):
        evaluate(lambda x: model(x), pair, "quick", THREAT, fast=True)

    class Fragile(nn.Module):
        """Whose answers hang on the last bits of a product."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 10)

        def forward(self, x):
            return 1e4 * self.linear(x.mean((2, 3))) % 7.0

    fragile = Fragile()
    labels = fragile(pair[0]).argmax(1)
    with pytest.raises(ModelError, match="exact mode"):
        evaluate(fragile, (pair[0], labels), "quick", THREAT, fast=True)


def test_batch_norm_is_folded_whatever_the_forward_pass_decides(model, pair):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) if x.mean() > 0 else -self.inner(x)

    assert cheaper(Branching(), pair[0])[1] == "channels last, batch norm folded, bfloat16"


def test_a_convolution_that_somebody_else_uses_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.second, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            x = self.first(x)
            x = x + self.norm(x)
            return self.linear(self.last(self.second(x)).mean((2, 3)))

    torch.manual_seed(0)
    shared = Shared().eval()
    for norm in (shared.norm, shared.last):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    images = torch.rand(6, 3, 12, 12)
    folded = _folded(copy.deepcopy(shared), images)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert isinstance(folded.last, nn.Identity)
    torch.testing.assert_close(folded(images), shared(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("odd", ["parametrised", "without running statistics"])
def test_what_cannot_be_folded_is_left_as_it_is(odd):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=odd == "parametrised")
    odd_one = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(400, 5)).eval()
    if odd == "parametrised":
        nn.utils.parametrizations.weight_norm(odd_one[0])
    images = torch.rand(6, 3, 12, 12)
    assert cheaper(odd_one, images)[1] == "channels last, bfloat16"


def test_successes_that_were_not_found_through_the_copy_count_all_the_same(model, pair):
    suite = Suite("s", {"DDN": Transfer(DDN(steps=40), copy.deepcopy(model))})
    exact, fast = (evaluate(model, pair, suite, fast=fast).robust_accuracy("DDN").count for fast in (False, True))
    assert exact == fast == 0


@pytest.mark.parametrize("name", ["resnet", "preact-resnet", "wide-resnet"])
def test_batch_norms_of_the_residual_networks_are_folded(name):
    settings = {"resnet": {"depth": 8}, "preact-resnet": {"width": 8}, "wide-resnet": {"depth": 10, "widen_factor": 1}}
    torch.manual_seed(0)
    network, images = build(name, **settings[name]).eval(), torch.rand(6, 3, 32, 32)
    assert "batch norm folded" in cheaper(network, images)[1]


def test_a_batch_norm_that_is_called_by_keyword_is_left_alone():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, x):
            return self.linear(self.norm(input=self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    network = Keywords().eval()
    assert _folded(copy.deepcopy(network), torch.rand(4, 3, 12, 12)) is None
