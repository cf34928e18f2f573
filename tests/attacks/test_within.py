"""Within: a minimal attack that answers a bounded question."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, Attack, FGSLine, HotCold
from bessemer.attacks.fab import FAB
from bessemer.attacks.within import Within
from bessemer.errors import UsageError
from bessemer.threat import L1, L2, THREATS, Linf


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).eval()


@pytest.fixture(scope="module")
def batch(model):
    images = (torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return images, model(images).argmax(1)


@dataclass(frozen=True)
class Shifted(Attack):
    """A minimal attack whose answer is known: every pixel darker by `by`; it notes what it was told."""

    by: float = 0.1
    enough: float = 0.0

    kind: ClassVar[str] = "minimal"
    told: ClassVar[list] = []

    def passes(self, classes):
        return 7, classes

    def remarks(self, classes):
        return [f"{classes} classes"]

    def search(self, oracle, images, goal, seed, index, until_success):
        self.told.append((self.enough, seed, index.tolist(), until_success))
        oracle.logits(images)
        return images - self.by


def test_a_point_inside_is_kept_and_one_outside_is_projected(model):
    images, labels = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    found = Within(Linf(0.2), Shifted(0.1))(model, images, labels)
    assert torch.equal(found, images - 0.1)
    torch.testing.assert_close(Within(Linf(0.02), Shifted(0.1))(model, images, labels), images - 0.02)
    # 16 pixels of 0.1: 0.4 in L2, 1.6 in L1
    torch.testing.assert_close(Within(L2(0.2), Shifted(0.1))(model, images, labels), images - 0.05)
    torch.testing.assert_close(Within(L1(0.4), Shifted(0.1))(model, images, labels), images - 0.025)


def test_the_attack_is_told_the_radius_where_only_verdicts_count(model):
    images, labels, index = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long(), torch.tensor([4, 7, 5])
    attack = Within(Linf(0.2), Shifted())
    Shifted.told.clear()
    attack.run(model, images, labels, seed=3, index=index)
    attack.run(model, images, labels, seed=3, index=index, until_success=True)
    assert Shifted.told == [(0.0, 3, [4, 7, 5], False), (0.2, 3, [4, 7, 5], True)]
    assert attack == Within(Linf(0.2), Shifted())
    assert attack.passes(6) == (7, 6)
    assert attack.remarks(6) == ["6 classes"]


@pytest.mark.parametrize("attack", [FAB("Linf", steps=15), FAB("L2", steps=15, targets=2), FGSLine(), HotCold()])
def test_the_verdict_is_whether_the_nearest_point_lies_inside(attack, model, batch):
    images, labels = batch
    norm = getattr(attack, "norm", "Linf")
    nearest = attack(model, images, labels)
    distance = THREATS[norm](0.0).size(nearest - images)
    threat = THREATS[norm](distance.median().item() * 1.001)
    found = Within(threat, attack)(model, images, labels)
    inside = distance <= threat.eps
    assert 5 < inside.sum() < 35
    assert torch.equal(found[inside], nearest[inside])
    assert (model(found[inside]).argmax(1) != labels[inside]).all()
    assert threat.size(found - images).max() <= threat.eps + 1e-6
    torch.testing.assert_close(found[~inside], threat.project(nearest, images)[~inside])


def test_stopping_at_the_radius_spares_passes_and_changes_no_verdict(model, batch):
    images, labels = batch
    attack = Within(L2(0.7), FAB("L2", steps=40))
    whole, early = (attack.run(model, images, labels, until_success=stop) for stop in (False, True))
    fooled = model(whole.images).argmax(1) != labels
    assert torch.equal(model(early.images).argmax(1) != labels, fooled)
    assert 3 < fooled.sum() < 40
    assert early.forwards[fooled].float().mean() < whole.forwards.min() / 3


def test_reaches_a_target(model, batch):
    images, labels = batch
    target = (labels + 1) % 5
    found = Within(L2(3.0), FAB("L2", steps=20))(model, images, labels, target=target)
    assert (model(found).argmax(1) == target).float().mean() > 0.8


def test_what_does_not_fit_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="nearest point; FGSM is bounded"):
        Within(Linf(0.1), FGSM(Linf(0.1)))
    with pytest.raises(UsageError, match=r"FAB measures in L2, Linf\(0\.1\) in Linf"):
        Within(Linf(0.1), FAB("L2"))
    with pytest.raises(UsageError, match="box"):
        Within(L2(0.1, box=None), FAB("L2"))
    with pytest.raises(UsageError, match="Within is bounded"):
        Within(Linf(0.1), Within(Linf(0.1), FAB("Linf")))
