"""Adversarial images that an 8-bit file can hold."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bessemer.attacks import FGSM, PGD, FGSLine, GaussianNoise, GradientAttack, HotCold
from bessemer.attacks.attack import Oracle
from bessemer.attacks.eight_bit import EightBit, _Stored
from bessemer.attacks.eot import EOT
from bessemer.attacks.goal import Goal
from bessemer.attacks.parts import GreyLevels
from bessemer.attacks.uniform_noise import UniformNoise
from bessemer.attacks.worst import Worst
from bessemer.errors import ImagesError, UsageError
from bessemer.threat import L1, L2, Linf


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5)).eval()


@pytest.fixture(scope="module")
def batch(model):
    grey = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    grey[0], grey[1] = 0, 255
    images = grey / 255
    return images, model(images).argmax(1)


BALLS = [Linf(8 / 255), Linf(0.03), Linf(7.9997 / 255), Linf(0.1), Linf(1 / 255), L2(0.5), L2(0.37), L1(2.0)]


@pytest.mark.parametrize("until_success", [False, True])
@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_images_survive_a_file_and_stay_in_the_ball(ball, until_success, model, batch):
    images, labels = batch
    found = EightBit(PGD(ball, steps=10)).run(model, images, labels, until_success=until_success).images
    levels = (found * 255).round()
    assert torch.equal(found, levels / 255), "not the very numbers of an 8-bit image"
    for one in levels.byte():
        file = io.BytesIO()
        Image.fromarray(one[0].numpy()).save(file, format="png")
        assert np.array_equal(np.asarray(Image.open(file)), one[0].numpy())
    exact = (levels.double() - (images * 255).round().double()) / 255
    assert ball.size(exact).max() <= ball.eps + 1e-6
    assert ball.size(exact).max() > 0
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(("eps", "levels"), [(8 / 255, 8), (0.03, 7), (7.9997 / 255, 7), (1 / 255, 1), (0.1, 25)])
def test_linf_reaches_the_last_whole_level(eps, levels, model, batch):
    """8/255 in float32 is a little off a level: it must not cost one."""
    images, labels = batch
    found = EightBit(PGD(Linf(eps), steps=30, loss="margin"))(model, images, labels)
    moved = ((found - images) * 255).round().abs()
    free = (images > eps) & (images < 1 - eps)
    assert moved.max() == levels
    assert (moved[free] == levels).float().mean() > 0.5


@pytest.mark.parametrize("ball", [Linf(0.031), L2(0.3), L1(1.5)], ids=repr)
def test_rounding_is_towards_the_original(ball):
    """Against Python's own integers, image by image, for any point of the ball."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (6, 1, 5, 5), generator=generator).float()
    points = ball.sample(grey / 255, 3, torch.arange(6))
    stored = _Stored(Oracle(lambda x: x, grey / 255, Goal(torch.zeros(6).long())), grey, ball).at(points)
    expected = [
        int(g) + int(255 * float(p) - int(g)) for g, p in zip(grey.flatten(), points.double().flatten(), strict=True)
    ]
    assert torch.equal(stored, torch.tensor(expected).view_as(grey) / 255)
    assert ball.size(stored - grey / 255).max() <= ball.eps


@pytest.mark.parametrize("norm", [L2, L1])
def test_many_pixels_just_under_a_level_do_not_leave_together(norm):
    """Each is within what is forgiven for a single one; all of them at once are rounded down."""
    grey = torch.full((2, 1, 40, 40), 100.0)
    change = torch.full((2, 1, 40, 40), 0.99995 / 255)
    ball = norm(norm(0.0).size(change)[0].item())
    oracle = Oracle(lambda x: x, grey, Goal(torch.zeros(2).long()))
    stored = _Stored(oracle, grey, ball).at(grey / 255 + change)
    assert ball.size((stored - grey / 255).double()).max() <= ball.eps + 1e-6
    # while a single one is forgiven, as for Linf
    alone = _Stored(oracle, grey, Linf(0.99995 / 255)).at(grey / 255 + change)
    assert torch.equal((alone * 255).round(), grey + 1)


def test_the_search_sees_what_is_stored(model, batch):
    """Every image that the model is shown is in whole grey levels, and the found ones fool as they are."""
    images, labels = batch
    shown = []

    def watched(x):
        shown.append(x.detach())
        return model(x)

    outcome = EightBit(PGD(Linf(0.05), steps=5, restarts=2)).run(watched, images, labels, until_success=True)
    assert len(shown) >= 12
    assert all(torch.equal(x, (x * 255).round() / 255) for x in shown)
    # an image leaves as soon as a stored image fools, so that those with fewer passes are all fooled
    left = outcome.forwards < outcome.forwards.max()
    assert left.any()
    assert (model(outcome.images).argmax(1) != labels)[left].all()


def test_small_steps_add_up(model, batch):
    """Steps of a third of a level move nothing if each is rounded by itself."""
    images, labels = batch
    attack = PGD(Linf(6 / 255), steps=30, step_size=1 / 765, random_start=False)
    change = EightBit(attack)(model, images, labels) - images
    assert (change.abs() * 255).round().max() >= 5
    lost = GradientAttack(
        attack.threat, 30, start=attack.composed.start, step_size=attack.composed.step_size, projection=GreyLevels()
    )(model, images, labels)
    assert torch.equal((lost * 255).round(), (images * 255).round()), "the case is not what it says"


def test_loses_little_and_beats_rounding_afterwards(model, batch):
    images, labels = batch
    ball = Linf(2.5 / 255)
    attack = PGD(ball, steps=20, loss="margin")
    free = model(attack(model, images, labels)).argmax(1) != labels
    grey = model(EightBit(attack)(model, images, labels)).argmax(1) != labels
    assert not (grey & ~free).any()
    smaller = model(PGD(Linf(2 / 255), steps=20, loss="margin")(model, images, labels)).argmax(1) != labels
    assert (smaller & ~grey).sum() <= 1, "two whole levels are in reach"
    assert grey.any()


@pytest.mark.parametrize(
    "attack",
    [
        EightBit(UniformNoise(Linf(0.1), draws=3)),
        EightBit(EOT(PGD(L2(0.5), steps=4), samples=2)),
        EightBit(Worst((FGSM(Linf(0.03)), PGD(Linf(0.03), steps=4)))),
        Worst((EightBit(FGSM(Linf(0.03))), PGD(Linf(0.03), steps=1, random_start=False))),
        EightBit(EightBit(PGD(Linf(0.03), steps=4))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("until_success", [False, True])
def test_stands_inside_and_around_other_wrappers(attack, until_success, model, batch):
    images, labels = batch
    outcome = attack.run(model, images, labels, until_success=until_success)
    assert attack.threat.size(outcome.images - images).max() <= attack.threat.eps + 1e-6
    assert (outcome.forwards <= attack.passes(5)[0]).all()
    if isinstance(attack, EightBit):
        assert torch.equal(outcome.images, (outcome.images * 255).round() / 255)
        assert attack.kind == attack.attack.kind


def test_successes_on_a_cheaper_copy_are_confirmed_on_stored_images(model, batch):
    """The copy errs everywhere; the model itself is asked, in whole grey levels, about the right images."""
    images, labels = batch
    asked = []

    def watched(x):
        asked.append(x)
        return model(x)

    def hasty(x):
        logits = model(x)
        return logits + 100 * nn.functional.one_hot((logits.argmax(1) + 1) % 5, 5)

    members = [PGD(Linf(0.03), steps=steps, random_start=False, loss="margin") for steps in (1, 6)]
    attack = EightBit(Worst(members))
    outcome = attack.run(watched, images, labels, until_success=True, through=hasty)
    assert all(torch.equal(x, (x * 255).round() / 255) for x in asked)
    assert sum(len(x) for x in asked) == outcome.verifications.sum() > len(images)
    left = outcome.forwards < outcome.forwards.max()
    assert left.any()
    assert (~left).any()
    assert (model(outcome.images).argmax(1) != labels)[left].all()
    honest = attack.run(model, images, labels, until_success=True, through=lambda x: model(x))
    plain = attack.run(model, images, labels, until_success=True)
    assert torch.equal(honest.images, plain.images)
    assert torch.equal(honest.forwards, plain.forwards)


def test_a_ball_under_one_level_holds_only_the_original(model, batch):
    images, labels = batch
    attack = EightBit(PGD(Linf(0.9 / 255), steps=5))
    assert torch.equal((attack(model, images, labels) * 255).round(), (images * 255).round())
    assert attack.remarks(5) == ["no pixel can move by a whole grey level in this ball"]
    assert EightBit(PGD(Linf(1 / 255))).remarks(5) == []


def test_what_cannot_be_stored_is_refused(model, batch):
    images, labels = batch
    with pytest.raises(ImagesError, match="whole grey levels; round them"):
        EightBit(FGSM(Linf(0.1)))(model, images * 0.99, labels)
    for attack in (FGSLine(), HotCold(), GaussianNoise(0.1), FGSM(Linf(2.0, box=None))):
        with pytest.raises(UsageError, match=r"threat in \[0, 1\]"):
            EightBit(attack)
