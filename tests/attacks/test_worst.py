"""The worst of several attacks is never weaker than any of them, for any image."""

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, PGD, FGSLine, GaussianNoise, GradientAttack, HotCold, losses, parts
from bessemer.attacks.eot import EOT
from bessemer.attacks.goal import Goal
from bessemer.attacks.uniform_noise import UniformNoise
from bessemer.attacks.worst import Worst
from bessemer.attacks.wrapped import in_ball
from bessemer.errors import UsageError
from bessemer.threat import L2, Linf

BALL = Linf(0.1)
MEMBERS = (
    PGD(BALL, steps=6, restarts=2, loss="margin"),
    FGSM(BALL),
    GradientAttack(BALL, 5, aim=parts.RandomClass()),
    EOT(PGD(BALL, steps=3, loss="dlr"), samples=2),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 5)).eval()


@pytest.fixture(scope="module")
def batch(model):
    images = (torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return images, model(images).argmax(1)


def margins(model, images, labels):
    return losses.margin(Goal(labels), model(images)).detach()


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("members", [MEMBERS, MEMBERS[1:3], MEMBERS[:1]], ids=len)
def test_each_image_is_the_worst_that_a_member_found_alone(members, target, model, batch):
    images, labels = batch
    wanted = (labels + 1) % 5 if target else None
    goal = Goal(labels, wanted)
    found = Worst(members)(model, images, labels, target=wanted, seed=7)
    alone = torch.stack([attack(model, images, labels, target=wanted, seed=7) for attack in members])
    each = torch.stack([losses.margin(goal, model(one)) for one in alone])
    torch.testing.assert_close(losses.margin(goal, model(found)), each.amax(0))
    assert len(members) == 1 or each.argmax(0).unique().numel() > 1, "one member is always the worst"
    assert BALL.size(found - images).max() <= BALL.eps + 1e-6


def test_where_verdicts_count_every_image_that_a_member_turns_is_turned(model, batch):
    """A smaller part of the batch, other rows, other goals: the verdicts are those of the whole."""
    images, labels = batch
    ball = Linf(0.04)
    members = (
        FGSM(ball),
        GradientAttack(ball, 5, aim=parts.RandomClass(), restarts=2),
        EOT(GradientAttack(ball, 4, aim=parts.Likely(2)), samples=2),
        PGD(ball, steps=10, loss="margin"),
    )
    outcome = Worst(members).run(model, images, labels, until_success=True)
    turned = torch.stack([model(attack(model, images, labels)).argmax(1) != labels for attack in members])
    assert torch.equal(model(outcome.images).argmax(1) != labels, turned.any(0))
    assert 0 < turned[0].sum() < turned.any(0).sum() < len(images)
    # FGSM takes one pass, the look at its image another, and that is all for what it turns
    assert torch.equal(outcome.forwards == 2, turned[0])
    assert outcome.forwards.max() <= Worst(members).passes(5)[0]
    assert outcome.backwards.max() <= Worst(members).passes(5)[1]


def test_a_target_holds_for_the_part_that_still_stands(model, batch):
    images, labels = batch
    target = (labels + 1) % 5
    members = (FGSM(Linf(0.06)), PGD(Linf(0.06), steps=20, loss="margin"))
    run = Worst(members).run(model, images, labels, target=target, until_success=True)
    turned = torch.stack([model(a(model, images, labels, target=target)).argmax(1) == target for a in members])
    assert torch.equal(model(run.images).argmax(1) == target, turned.any(0))
    assert turned[0].sum() < turned[1].sum()


@pytest.mark.parametrize("until_success", [False, True])
def test_of_minimal_attacks_the_nearest(until_success, model, batch):
    images, labels = batch
    members = (FGSLine(), HotCold(), HotCold(sign=True), HotCold(rank=2))
    attack = Worst(members)
    outcome = attack.run(model, images, labels, until_success=until_success)
    assert (attack.kind, attack.threat, attack.norm) == ("minimal", None, "Linf")
    distance = []
    for member in members:
        found = member(model, images, labels)
        size = (found - images).abs().flatten(1).amax(1)
        distance.append(size.where(model(found).argmax(1) != labels, torch.inf))
    nearest = torch.stack(distance)
    assert nearest.argmin(0).unique().numel() > 1
    ours = (outcome.images - images).abs().flatten(1).amax(1)
    assert torch.equal(ours, nearest.amin(0).where(nearest.amin(0).isfinite(), 0))
    assert outcome.forwards.max() <= attack.passes(5)[0]


def test_what_no_minimal_attack_turns_comes_back(batch):
    images, _ = batch

    def stubborn(x):
        return torch.tensor([3.0, 0.0]) + 1e-3 * x.flatten(1)[:, :2]

    found = Worst((FGSLine(), HotCold()))(stubborn, images, torch.zeros(len(images)).long())
    assert torch.equal(found, images)


def test_random_attacks_unite_as_well(model, batch):
    images, labels = batch
    ball = Linf(0.25)
    attack = Worst((UniformNoise(ball, draws=3), GaussianNoise(0.2, threat=ball)))
    turned = model(attack(model, images, labels)).argmax(1) != labels
    for member in attack.attacks:
        assert not ((model(member(model, images, labels)).argmax(1) != labels) & ~turned).any()
    assert turned.any()


def test_splitting_a_batch_changes_nothing(model, batch):
    images, labels = batch
    attack = Worst(MEMBERS[:3])
    whole = attack(model, images, labels, seed=2)
    cuts = (slice(0, 7), slice(7, 8), slice(8, 40))
    pieces = [attack(model, images[c], labels[c], seed=2, index=torch.arange(40)[c]) for c in cuts]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)


def test_wrappers_stand_around_it(model, batch):
    """Averaging a model without randomness changes nothing, also for a part of the batch."""
    attack = Worst((FGSM(Linf(0.04)), PGD(Linf(0.04), steps=5)))
    plain, averaged = (a.run(model, *batch, until_success=True) for a in (attack, EOT(attack, samples=2)))
    torch.testing.assert_close(averaged.images, plain.images)
    assert torch.equal(averaged.forwards, 2 * plain.forwards)


def test_moves_to_another_ball_with_all_that_it_holds():
    wide = Linf(0.3)
    attack = EOT(Worst((FGSM(BALL), EOT(PGD(BALL, steps=3), samples=2))), samples=4)
    assert in_ball(attack, wide) == EOT(Worst((FGSM(wide), EOT(PGD(wide, steps=3), samples=2))), samples=4)
    assert in_ball(attack, wide).threat == wide
    assert attack.threat == BALL


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(UsageError, match="one kind, found bounded, minimal"):
        Worst((FGSM(BALL), HotCold()))
    with pytest.raises(UsageError, match=r"one threat, found Linf:0.1, L2:1"):
        Worst((FGSM(BALL), FGSM(L2(1.0))))
    with pytest.raises(UsageError, match="at least one"):
        Worst(())
    assert Worst([FGSM(BALL)]) == Worst((FGSM(BALL),))
