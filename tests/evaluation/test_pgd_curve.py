"""The suite `pgd-curve`: which budgets are runs of their own, what is read off, and whether a plateau is seen."""

import pytest
import torch
from torch import nn
from written import evaluation, rows

from bessemer.attacks import PGD, GradientAttack, parts
from bessemer.errors import UsageError
from bessemer.evaluation import checklist, evaluate, suites
from bessemer.records import BUDGETS
from bessemer.threat import L2, Linf

NAME = "still falling at the last budget"
GREY = 1 / 255


class Chain(nn.Module):
    """Two classes; class 1 wins once enough pixels are up: `needs` says how many, the first pixel for which image.

    Only the first pixel that is not up yet has a slope, so the attack spends its steps on one after the other.
    """

    def __init__(self, needs, eps):
        super().__init__()
        self.needs, self.eps = torch.tensor(needs), eps

    def forward(self, images):
        # as far apart as five levels are, no attack in the ball changes the level
        level, chain = (5 * images.flatten(1)[:, :1].detach()).round().long(), images.flatten(1)[:, 1:]
        height = ((chain - 0.5 + self.eps) / (1.8 * self.eps)).clamp(max=1)
        up = (height.detach() >= 1).to(chain)
        reachable = torch.cat([torch.ones_like(up[:, :1]), up[:, :-1].cumprod(1)], 1)
        done = (reachable * height).sum(1, keepdim=True)
        return torch.cat([self.needs[level] - 0.5, done], 1) / 20


def chained(*needs, count=60, length=400, eps=8 * GREY):
    """The network, and images of class 0 that fall after so many raised pixels, as many for each number."""
    images = torch.full((count, 1, 1, 1 + length), 0.5, dtype=torch.float64)
    images[:, 0, 0, 0] = torch.arange(count) % len(needs) / 5
    return Chain(needs, eps), (images, torch.zeros(count).long())


def told(found):
    return {finding.attack: finding for finding in checklist.findings(found) if finding.name == NAME}


# --- the suite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threat", "own"),
    [
        (Linf(16 / 255), (10, 2000)),
        (Linf(8 / 255), (2000,)),
        (Linf(0.3), (10, 20, 30, 50, 2000)),
        (L2(0.5), (10, 2000)),
    ],
    ids=str,
)
def test_budgets_with_longer_steps_are_runs_of_their_own(threat, own):
    suite = suites.named("pgd-curve", threat)
    least = GREY if isinstance(threat, Linf) else threat.eps / 16
    assert list(suite.attacks) == [f"PGD-{steps}" for steps in own]
    for steps in BUDGETS:
        attack = suite.attacks.get(f"PGD-{steps}", suite.attacks["PGD-2000"])
        used = attack.step_size.at(0, attack.steps, threat)
        assert used == pytest.approx(max(least, threat.eps / steps)), "Xie and Yuille's rule, whichever run answers"
        assert attack.aim == parts.RandomClass()
        assert attack.start == parts.Uniform()


def test_it_can_go_away_from_the_label_too_under_another_name():
    suite = suites.pgd_curve(Linf(8 / 255), targeted=False)
    assert suite.name == "pgd-curve-untargeted"
    assert suite.attacks["PGD-2000"].aim == parts.AsAsked()


def test_it_needs_a_threat():
    with pytest.raises(UsageError, match="pgd-curve needs a threat"):
        suites.named("pgd-curve", None)


@pytest.mark.parametrize("targeted", [True, False])
def test_what_is_read_off_is_what_separate_runs_leave(targeted):
    eps = 16 * GREY
    model, images = chained(5, 40, 500, count=30, length=60, eps=eps)
    threat, budgets = Linf(eps), [count for count in BUDGETS if count <= 1000]
    found = evaluate(model, images, suites.pgd_curve(threat, targeted), threat)
    aim = parts.RandomClass() if targeted else parts.AsAsked()
    runs = {f"PGD-{steps}": GradientAttack(threat, steps, aim=aim, step_size=parts.AtLeast(GREY)) for steps in budgets}
    alone = evaluate(model, images, suites.Suite("alone", runs), threat)
    curve = found.over_budgets()
    assert list(curve) == list(BUDGETS)
    assert [curve[count] for count in budgets] == [alone.robust_accuracy(name) for name in runs]
    assert len(set(curve.values())) > 2, "they fall at different times"
    assert alone.over_budgets() == {}, "of this suite only"


# --- the plateau -----------------------------------------------------------------------------------------------------


def test_a_network_whose_accuracy_keeps_falling_is_doubted():
    model, images = chained(50, 130, 160, 190, 220, 250)
    found = evaluate(model, images, "pgd-curve", Linf(8 / 255))
    curve = found.over_budgets()
    assert curve[1000].count - curve[2000].count >= 10
    finding = told(found)["PGD-2000"]
    assert finding.verdict == "doubt"
    assert f"{100 * curve[1000].value:.1f} % standing after 1,000 steps" in finding.figure
    assert "PGD-2000" in {each.attack for each in found.findings if each.verdict == "doubt"}


def test_a_network_whose_accuracy_is_flat_is_not():
    model, images = chained(50, 900)
    found = evaluate(model, images, "pgd-curve", Linf(8 / 255))
    curve = found.over_budgets()
    assert (curve[10].count, curve[1000].count, curve[2000].count) == (60, 30, 30)
    assert told(found)["PGD-2000"].verdict == "trust"


def written_run(late, steps=2000, eps=0.1, **settings):
    """An attack that turned 100 images at its tenth step and some more at the last but one."""
    attack = GradientAttack(Linf(eps), steps, **{"step_size": parts.AtLeast(eps / 20), **settings})
    found = rows(f"PGD-{steps}", range(100 + late), repr(attack), forwards=steps + 1)
    found["forwards"][:100] = 11
    found["forwards"][100 : 100 + late] = steps
    return found


@pytest.mark.parametrize(("late", "verdict"), [(6, "trust"), (7, "doubt")])
def test_it_takes_seven_images_of_two_hundred(late, verdict):
    # 0.5 ** 7 < 0.01 < 0.5 ** 6; seven are 3.5 points
    assert told(evaluation(written_run(late)))["PGD-2000"].verdict == verdict


def test_only_runs_that_hold_shorter_ones_are_asked():
    name = "still climbing at the end"
    for other in (
        written_run(50, step_size=parts.Constant()),
        written_run(50, step_size=parts.AtLeast(0.001)),  # a thousand steps of eps / 1000 pass it; 20 do not
        written_run(50, restarts=2),
        rows("PGD", range(50), repr(PGD(Linf(0.1), steps=20, step_size=0.01))),
    ):
        found = checklist.findings(evaluation(other))
        steps = {finding.name for finding in found} & {NAME, name}
        assert NAME not in steps or "0.001" in other.attack
    assert told(evaluation(written_run(50, steps=20, step_size=parts.AtLeast(0.001)))) == {}
    # one question is answered once: by the exact test where a half is a run too
    assert not [found for found in checklist.findings(evaluation(written_run(50))) if found.name == name]


def test_where_nobody_leaves_early_nothing_is_said():
    whole = written_run(0)
    whole["forwards"][:] = 2001
    assert told(evaluation(whole)) == {}
