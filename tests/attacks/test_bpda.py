"""Through a first stage without a gradient."""

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, PGD, FGSLine, Goal, Oracle
from bessemer.attacks.attack import borrowed
from bessemer.attacks.bpda import BPDA
from bessemer.attacks.eot import EOT
from bessemer.data import load
from bessemer.errors import ModelError, UsageError
from bessemer.threat import L2, Linf


def quantise(images):
    """Six grey levels; the gradient of rounding is zero wherever it exists."""
    return (images * 5).round() / 5


class Defended(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(quantise(x))


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def network(digits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(quantise(images)), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def model(network):
    return Defended(network)


@pytest.fixture(scope="module")
def batch(model, digits):
    images, labels = digits.test.at(slice(0, 100))
    right = model(images).argmax(1) == labels
    return images[right], labels[right]


def turned(model, found, labels):
    with torch.no_grad():
        return (model(found).argmax(1) != labels).float().mean().item()


@pytest.mark.parametrize("threat", [Linf(0.15), L2(1.2)], ids=repr)
def test_breaks_quantised_inputs_that_hide_from_pgd(threat, model, network, batch):
    images, labels = batch
    plain = PGD(threat, steps=20, random_start=False)
    through = BPDA(plain, stage=quantise, rest=network)
    blind = plain.run(model, images, labels, until_success=True)
    seeing = through.run(model, images, labels, until_success=True)
    assert blind.zero_gradients.min() >= 20, "rounding has no gradient"
    assert turned(model, blind.images, labels) == 0
    assert seeing.zero_gradients.max() == 0
    assert turned(model, seeing.images, labels) > 0.7
    assert threat.size(seeing.images - images).max() <= threat.eps + 1e-6
    assert (seeing.forwards <= through.passes(10)[0]).all()
    assert (seeing.backwards <= through.passes(10)[1]).all()


def test_the_gradient_is_that_of_the_rest_at_the_quantised_image(model, network, batch):
    images, labels = batch
    z = quantise(images).requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(network(z), labels, reduction="sum"), z)
    attack = BPDA(FGSM(Linf(0.1)), quantise, network)
    found = attack(model, images, labels)
    step = (images + 0.1 * expected.sign()).clamp(0, 1)
    loss = nn.functional.cross_entropy
    better = loss(model(step), labels, reduction="none") >= loss(model(images), labels, reduction="none")
    torch.testing.assert_close(found[better], step[better])
    assert better.any()


def test_another_stand_in_gives_its_own_gradient(network):
    """J_s(x)ᵀ ∇rest at g(x), with s(x) = x³ for a stage that is none of the sort."""
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5)
    attack = BPDA(FGSM(Linf(0.1)), quantise, network, backward=lambda x: x**3)
    oracle = Oracle(network, images, Goal(labels)).asking(through=attack._differentiable)
    with borrowed(network, images.device, 0):
        gradient, logits, _ = oracle.gradient(images)
    z = quantise(images).requires_grad_()
    (rest,) = torch.autograd.grad(nn.functional.cross_entropy(network(z), labels, reduction="sum"), z)
    torch.testing.assert_close(gradient, 3 * images**2 * rest)
    torch.testing.assert_close(logits, network(quantise(images)), rtol=0, atol=0)


def test_a_stage_of_another_shape_needs_a_stand_in_of_its_own(batch):
    """A thermometer code: sixteen channels of zeros and ones for each pixel."""
    images, labels = batch
    levels = torch.linspace(0.03, 0.97, 16).view(1, 16, 1, 1)

    def thermometer(x):
        return (x > levels).float()

    def soft(x):
        return torch.sigmoid(10 * (x - levels))

    torch.manual_seed(2)
    rest = nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 10))

    def model(x):
        return rest(thermometer(x))

    labels = model(images).argmax(1)
    with pytest.raises(UsageError, match="its stand-in identity makes .*give a backward of the stage's shape"):
        BPDA(FGSM(Linf(0.1)), thermometer, rest)(model, images, labels)
    with pytest.raises(ModelError, match="no gradient"):
        FGSM(Linf(0.1))(lambda x: rest(thermometer(x)).detach(), images, labels)
    found = BPDA(PGD(Linf(0.1), steps=10), thermometer, rest, soft)(model, images, labels)
    assert turned(model, found, labels) > 0.9


def test_the_attacked_model_alone_says_what_is_a_success(model, network, batch):
    """A rest that errs everywhere convinces nobody."""
    images, labels = batch

    def contrary(z):
        return -network(z)

    outcome = BPDA(FGSLine(), quantise, contrary).run(model, images, labels)
    fooled = model(outcome.images).argmax(1) != labels
    assert torch.equal(outcome.images[~fooled], images[~fooled])
    assert (~fooled).any()
    assert (outcome.verifications > 0).all()
    assert (outcome.forwards <= FGSLine().passes(10)[0]).all()


def test_modules_are_in_evaluation_mode_and_come_back(batch):
    images, labels = batch

    class Stage(nn.Module):
        def forward(self, x):
            assert not self.training
            return quantise(x)

    torch.manual_seed(3)
    rest = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.ReLU(inplace=True), nn.Linear(64, 10))
    stage = Stage()
    state = {name: tensor.clone() for name, tensor in rest.state_dict().items()}
    attack = BPDA(PGD(Linf(0.1), steps=3), stage, rest)
    assert torch.equal(
        attack(lambda x: rest(stage(x)), images, labels), attack(lambda x: rest(stage(x)), images, labels)
    )
    assert stage.training
    assert rest[1].training
    assert all(parameter.requires_grad for parameter in rest.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in rest.state_dict().items())


def test_stands_inside_an_average_for_stages_that_draw(network, batch):
    """A random quantiser: its levels are shifted by a draw at every call."""
    images, labels = batch

    def dithered(x):
        shift = torch.rand(x.shape[0], 1, 1, 1) - 0.5
        return ((x * 5 + shift).round() - shift) / 5

    def model(x):
        return network(dithered(x))

    attack = EOT(BPDA(PGD(Linf(0.2), steps=10), dithered, network), samples=4)
    assert attack.threat == Linf(0.2)
    outcome = attack.run(model, images, labels)
    assert turned(model, outcome.images, labels) > 0.8
    assert (outcome.forwards <= attack.passes(10)[0]).all()


def test_is_a_value_whose_text_is_short(network):
    attack = BPDA(FGSM(Linf(0.1)), quantise, network)
    assert repr(attack) == "BPDA(FGSM(threat=Linf(0.1)), stage=quantise, rest=Sequential, backward=identity)"
    assert attack == BPDA(FGSM(Linf(0.1)), quantise, network)
