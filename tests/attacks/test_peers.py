"""FGSM and PGD against torchattacks and Foolbox: the same images, or at least the same predictions."""

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, PGD
from bessemer.data import load
from bessemer.threat import L2, Linf

pytestmark = [
    # what other libraries do at import is theirs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def model(digits):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def batch(digits):
    return digits.test.at(slice(0, 200))


def predictions(model, images):
    with torch.no_grad():
        return model(images).argmax(1)


EPS, STEP, STEPS = 0.08, 0.016, 10


def test_torchattacks_agrees(model, batch):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    images, labels = batch
    ours = FGSM(Linf(EPS))(model, images, labels)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=EPS)(images, labels), rtol=0, atol=1e-6)
    theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(images, labels)
    ours = PGD(Linf(EPS), steps=STEPS, step_size=STEP, random_start=False)(model, images, labels)
    agree_or_stronger(model, ours, theirs, labels)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_foolbox_agrees(norm, model, batch):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    images, labels = batch
    threat = {"Linf": Linf(EPS), "L2": L2(4 * EPS)}[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    fast = {"Linf": foolbox.attacks.LinfFastGradientAttack, "L2": foolbox.attacks.L2FastGradientAttack}[norm]
    many = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm]
    _, theirs, _ = fast(random_start=False)(wrapped, images, labels, epsilons=threat.eps)
    torch.testing.assert_close(FGSM(threat)(model, images, labels), theirs, rtol=0, atol=1e-5)
    attack = many(abs_stepsize=threat.eps / 5, steps=STEPS, random_start=False)
    _, theirs, _ = attack(wrapped, images, labels, epsilons=threat.eps)
    ours = PGD(threat, steps=STEPS, step_size=threat.eps / 5, random_start=False)(model, images, labels)
    agree_or_stronger(model, ours, theirs, labels)


def agree_or_stronger(model, ours, theirs, labels):
    """Peers return the last point, we the worst visited: what they fool we fool, and seldom more."""
    own, other = predictions(model, ours) != labels, predictions(model, theirs) != labels
    assert 20 < other.sum() < 180, "an attack that fools all or none compares nothing"
    assert not (other & ~own).any()
    assert (own & ~other).sum() <= 2
    same = predictions(model, ours) == predictions(model, theirs)
    assert same.float().mean() >= 0.99
