"""The parts of gradient attacks against their definitions, and the attacks they make against theirs."""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer import randomness
from bessemer.attacks import BIM, MIFGSM, PGD, RFGSM, Goal, GradientAttack, Oracle, parts
from bessemer.attacks.parts import (
    AllSteps,
    AsAsked,
    AtLeast,
    Ball,
    Constant,
    Cosine,
    Direction,
    GreyLevels,
    Likely,
    Momentum,
    Natural,
    OnceConfident,
    RandomClass,
    Signs,
    SometimesNatural,
    Steepest,
    Stepping,
    Uniform,
)
from bessemer.errors import UsageError
from bessemer.threat import L1, L2, Linf

THREATS = [Linf(0.1), L2(0.5), L1(2.0)]
INDEX = torch.arange(20)


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).double().eval()
    with torch.no_grad():  # several classes among the images, and boundaries within reach
        model[1].weight *= 4
        model[1].bias -= model[1].weight.sum(1) / 2
        model[3].bias.zero_()
    return model.requires_grad_(False)


@pytest.fixture
def batch(model):
    images = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round().double() / 255
    return images, model(images).argmax(1)


def climb(model, x, labels):
    x = x.clone().requires_grad_()
    values = cross_entropy(model(x), labels, reduction="none")
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return gradient, values.detach()


def worst_of(model, visited, labels):
    """Misclassified before not, then by loss: image by image."""
    values = torch.stack([cross_entropy(model(x), labels, reduction="none") for x in visited]).detach()
    wrong = torch.stack([model(x).argmax(1) != labels for x in visited])
    best = (values + 1e6 * wrong).argmax(0)
    return torch.stack([visited[best[i]][i] for i in range(len(labels))])


# --- goals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aim", [AsAsked(), RandomClass(), Likely(2)], ids=repr)
def test_a_target_of_the_callers_own_always_wins(aim, model, batch):
    images, labels = batch
    goal = Goal(labels, (labels + 1) % 5)
    assert aim.goal(Oracle(model, images, goal), images, goal, 0, INDEX) is goal


def test_as_asked_is_the_callers_goal(model, batch):
    images, labels = batch
    goal = Goal(labels)
    assert AsAsked().goal(Oracle(model, images, goal), images, goal, 0, INDEX) is goal


def test_a_random_class_is_any_but_the_own_one_equally_often():
    count, classes = 12_000, 5
    images, labels = torch.zeros(count, 1), torch.arange(count) % classes
    goal, index = Goal(labels), torch.arange(count)
    oracle = Oracle(lambda x: x.expand(-1, classes) * 1.0, images, goal)
    aimed = RandomClass().goal(oracle, images, goal, 3, index)
    assert torch.equal(aimed.labels, labels)
    assert not (aimed.target == labels).any()
    table = torch.zeros(classes, classes).index_put((labels, aimed.target), torch.ones(count), accumulate=True)
    expected = count / classes / (classes - 1)
    squares = (table - expected).square() / expected
    # 15 degrees of freedom (5 · 4 cells, 5 sums fixed): 37.7 is passed once in a thousand
    assert squares[~torch.eye(classes, dtype=torch.bool)].sum() < 37.7
    again = RandomClass().goal(oracle, images, goal, 4, index)
    assert 0.2 < (again.target == aimed.target).float().mean() < 0.3, "another seed draws another class"
    some = torch.tensor([11, 7, 4000])
    few = RandomClass().goal(oracle, images[some], goal.at(some), 3, index[some])
    assert torch.equal(few.target, aimed.target[some])


@pytest.mark.parametrize("rank", [1, 2, 4, -1, -2, -4])
def test_likely_counts_from_either_end_without_the_own_class(rank, model, batch):
    images, _ = batch
    labels = torch.arange(20) % 5  # right or wrong, of any rank
    goal = Goal(labels)
    logits = model(images)
    aimed = Likely(rank).goal(Oracle(model, images, goal), images, goal, 0, INDEX)
    for i in range(20):
        order = [k for k in sorted(range(5), key=lambda k: -logits[i, k].item()) if k != labels[i]]
        assert aimed.target[i] == order[rank - 1 if rank > 0 else rank]


def test_likely_refuses_a_rank_that_is_not_there(model, batch):
    images, labels = batch
    with pytest.raises(UsageError, match="counts ranks from 1"):
        Likely(0)
    for rank in (5, -5):
        with pytest.raises(UsageError, match="needs 6 classes, the model has 5"):
            GradientAttack(Linf(0.1), 2, aim=Likely(rank))(model, images, labels)


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_starts(threat, batch):
    images, _ = batch
    assert torch.equal(Natural().point(threat, images, 3, INDEX), images)
    assert torch.equal(Uniform().point(threat, images, 3, INDEX), threat.sample(images, 3, INDEX))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_signs_go_a_share_of_the_way_along_the_steepest_direction_of_noise(share, batch):
    images, _ = batch
    noise = randomness.normal((1, 4, 4), 3, INDEX, torch.float64)
    corner = (images + share * 0.1 * noise.sign()).clamp(0, 1)
    torch.testing.assert_close(Signs(share).point(Linf(0.1), images, 3, INDEX), corner)
    unit = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    sphere = (images + share * 0.5 * unit).clamp(0, 1)
    torch.testing.assert_close(Signs(share).point(L2(0.5), images, 3, INDEX), sphere)
    assert not torch.equal(Signs(share).point(L2(0.5), images, 4, INDEX), sphere)


def test_a_start_that_is_sometimes_natural_is_drawn_once_for_a_batch(batch):
    images, _ = batch
    threat, start = Linf(0.1), SometimesNatural(0.2)
    natural = 0
    for seed in range(2000):
        point = start.point(threat, images[:2], seed, INDEX[:2])
        whole = torch.equal(point, images[:2])
        natural += whole
        assert whole or torch.equal(point, threat.sample(images[:2], seed, INDEX[:2]))
    # five standard deviations of a binomial around 400
    assert abs(natural - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8)
    # a process that holds other images of the batch draws the same
    seeds = range(40)
    drawn = [torch.equal(start.point(threat, images[:5], seed, INDEX[:5]), images[:5]) for seed in seeds]
    other = [torch.equal(start.point(threat, images[5:], seed, INDEX[5:]), images[5:]) for seed in seeds]
    assert drawn == other
    assert len(set(drawn)) == 2
    assert torch.equal(SometimesNatural(1).point(threat, images, 0, INDEX), images)
    assert torch.equal(SometimesNatural(0).point(threat, images, 0, INDEX), threat.sample(images, 0, INDEX))


@pytest.mark.parametrize("share", [-0.1, 1.01, math.nan])
def test_a_share_of_batches_lies_between_none_and_all(share):
    with pytest.raises(UsageError, match="a share of the batches from 0 to 1"):
        SometimesNatural(share)


def test_every_part_has_a_name_in_recipes():
    kinds = [kind for kind in vars(parts).values() if isinstance(kind, type) and kind.__module__ == parts.__name__]
    named = {part for _, by_name in parts.PARTS.values() for part in by_name.values()}
    assert {kind for kind in kinds if not inspect.isabstract(kind)} == named
    assert all(issubclass(part, kind) for kind, (_, by_name) in parts.PARTS.items() for part in by_name.values())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_signs_refuse_a_share_that_is_none(share):
    with pytest.raises(UsageError, match="above 0 and up to 1"):
        Signs(share)


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_directions_without_memory(threat, batch):
    images, _ = batch
    gradient = torch.randn(20, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for part, expected in ((Stepping(), threat.step(gradient, images)), (Steepest(), threat.steepest(gradient))):
        direction, memory = part.of(gradient, images, None, threat)
        assert torch.equal(direction, expected)
        assert memory is None


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("scale", [1.0, 1e-200])
def test_momentum_is_its_recursion(decay, scale):
    """g ← decay · g + ∇ / ‖∇‖₁, written as the sum it is."""
    gradients = torch.randn(5, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images, memory = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64), None
    for t in range(5):
        direction, memory = Momentum(decay).of(gradients[t] * scale, images, memory, L2(1.0))
        expected = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
        for s in range(t + 1):
            for i in range(3):
                expected[i] += decay ** (t - s) * gradients[s, i] / gradients[s, i].abs().sum()
        torch.testing.assert_close(memory, expected)
        lengths = expected.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(direction, expected / lengths)


def test_momentum_without_a_gradient_goes_on_and_is_no_nan():
    images, gradient = torch.full((2, 1, 2, 2), 0.5), torch.randn(2, 1, 2, 2)
    first, memory = Momentum().of(gradient, images, None, Linf(0.1))
    second, memory = Momentum().of(torch.zeros_like(gradient), images, memory, Linf(0.1))
    assert torch.equal(second, first)
    assert (Momentum().of(torch.zeros_like(gradient), images, None, Linf(0.1))[0] == 0).all()
    with pytest.raises(UsageError, match="from 0 upwards"):
        Momentum(-0.1)


# --- step sizes ------------------------------------------------------------------------------------------------------


def test_step_sizes():
    threat = Linf(0.1)
    assert [Constant(0.03).at(t, 10, threat) for t in (0, 4, 9)] == [0.03] * 3
    assert [Constant().at(t, 10, threat) for t in (0, 4, 9)] == pytest.approx([0.025] * 3)
    assert AtLeast(0.02).at(0, 10, threat) == 0.02
    assert AtLeast(0.02).at(0, 2, threat) == pytest.approx(0.05)
    for t in range(8):
        assert Cosine(0.7).at(t, 8, threat) == pytest.approx(0.7 * 0.1 * math.cos(math.pi * t / 16) ** 2)
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="above 0"):
            Constant(size)


# --- projections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_ball_is_the_threats_own_projection(threat, batch):
    images, _ = batch
    moved = images + torch.randn(20, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Ball().around(images, threat)(moved), threat.project(moved, images))


@pytest.mark.parametrize("eps", [0.5 / 255, 1 / 255, 2.7 / 255, 8 / 255, 0.1, 0.3])
@pytest.mark.parametrize("kind", [Linf, L2, L1], ids=lambda kind: kind.norm)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_levels_stay_whole_and_in_the_ball_whatever_the_radius(kind, eps, dtype, batch):
    """Where eps is a multiple of 1/255, rounding towards the original must not lose a level to rounding errors."""
    images, threat = batch[0].to(dtype), kind(eps)
    moved = images + torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = GreyLevels().around(images, threat)(moved)
    torch.testing.assert_close(255 * found, (255 * found).round(), rtol=0, atol=1e-4)
    threat.require(found, images, slack=1e-6)
    # the definition, in whole numbers: each pixel's projected move, cut off after the last whole level
    levels = (255 * (threat.project(moved, images) - images).double()).tolist()
    naive = [math.copysign(math.floor(abs(each) + 1e-4), each) for each in torch.tensor(levels).flatten().tolist()]
    torch.testing.assert_close((255 * (found - images)).double().round().flatten(), torch.tensor(naive).double())


def test_grey_levels_reach_the_whole_radius(batch):
    images = (batch[0] * 0.5 + 0.25).mul(255).round() / 255  # off the walls
    up = GreyLevels().around(images, Linf(8 / 255))(images + 1)
    torch.testing.assert_close(up, images + 8 / 255)
    assert torch.equal(GreyLevels().around(images, Linf(0.5 / 255))(images + 1), images)


def test_grey_levels_just_short_of_a_whole_one_are_not_rounded_up(batch):
    images = (batch[0] * 0.5 + 0.25).mul(255).round() / 255
    assert torch.equal(GreyLevels().around(images, Linf(0.9995 / 255))(images + 1), images)


def test_grey_levels_need_the_box_of_pixels(batch):
    with pytest.raises(UsageError, match=r"GreyLevels needs a threat in \[0, 1\]"):
        GreyLevels().around(batch[0], L2(0.5, box=None))(batch[0])


# --- stopping --------------------------------------------------------------------------------------------------------


def test_when_an_image_is_done():
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 1.5, 0.0], [0.0, 1.0, 2.5]])
    goal = Goal(torch.zeros(4).long())
    reached = goal.reached(logits)
    assert AllSteps().done(goal, logits, reached) is None
    assert OnceConfident().done(goal, logits, reached).tolist() == [False, True, True, True]
    assert OnceConfident(1.0).done(goal, logits, reached).tolist() == [False, True, False, True]
    assert OnceConfident(2.2).done(goal, logits, reached).tolist() == [False, False, False, True]
    to_1 = Goal(goal.labels, torch.ones(4).long())
    assert OnceConfident(1.0).done(to_1, logits, to_1.reached(logits)).tolist() == [False, True, False, False]
    # where the model itself takes back what a cheaper copy saw, the image is not done
    assert OnceConfident().done(goal, logits, ~reached).tolist() == [False] * 4


def test_once_confident_stops_each_image_where_it_leads_enough(model, batch):
    images, labels = batch
    threat, size, steps, lead = Linf(0.3), 0.02, 25, 0.3
    attack = GradientAttack(threat, steps, start=Natural(), step_size=Constant(size), stop=OnceConfident(lead))
    outcome = attack.run(model, images, labels)
    for i in range(20):
        x, asked = images[i : i + 1], 0
        visited = [x]
        for t in range(steps + 1):
            asked, logits = t + 1, model(x)[0]
            others = [k for k in range(5) if k != labels[i]]
            if logits[others].max() - logits[labels[i]] >= lead or t == steps:
                break
            gradient, _ = climb(model, x, labels[i : i + 1])
            x = torch.clamp(x + size * gradient.sign(), images[i] - 0.3, images[i] + 0.3).clamp(0, 1)
            visited.append(x)
        assert outcome.forwards[i] == asked
        expected = worst_of(model, visited, labels[i : i + 1])
        torch.testing.assert_close(outcome.images[i : i + 1], expected)
    assert 1 < outcome.forwards.min() < outcome.forwards.max()


# --- the attacks they make -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_rfgsm_is_its_two_steps(share, model, batch):
    images, labels = batch
    eps, alpha = 0.1, share * 0.1
    noise = randomness.normal((1, 4, 4), randomness.subseed(6, 0), INDEX, torch.float64)
    first = (images + alpha * noise.sign()).clamp(0, 1)
    gradient, _ = climb(model, first, labels)
    expected = (first + (eps - alpha) * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(RFGSM(Linf(eps), share)(model, images, labels, seed=6), expected)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_bim_and_mifgsm_are_their_loops(threat, model, batch):
    images, labels = batch
    steps = 7

    def loop(decay):
        x, g, visited = images, torch.zeros_like(images), [images]
        for _ in range(steps):
            gradient, _ = climb(model, x, labels)
            g = decay * g + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            if threat.norm == "Linf":
                change = (x + threat.eps / steps * g.sign() - images).clamp(-threat.eps, threat.eps)
            else:
                change = x + threat.eps / steps * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - images
                change = change * (threat.eps / change.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
            x = (images + change).clamp(0, 1)
            visited.append(x)
        return visited

    for attack, decay in ((BIM(threat, steps), 0.0), (MIFGSM(threat, steps), 1.0), (MIFGSM(threat, steps, 0.5), 0.5)):
        visited = loop(decay)
        torch.testing.assert_close(attack(model, images, labels), worst_of(model, visited, labels))
        last = GradientAttack(
            threat, steps, start=Natural(), direction=Momentum(decay), step_size=Constant(threat.eps / steps), last=True
        )
        torch.testing.assert_close(last(model, images, labels), visited[-1])


def test_pgd_returns_its_last_point_where_that_is_asked_for(model, batch):
    images, labels = batch
    eps, size, steps = 0.1, 0.04, 5
    x = images
    for _ in range(steps):
        g, _ = climb(model, x, labels)
        x = (x + size * g.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    attack = PGD(Linf(eps), steps, size, random_start=False, last=True)
    outcome = attack.run(model, images, labels)
    torch.testing.assert_close(outcome.images, x, rtol=0, atol=0)
    assert set(outcome.forwards.tolist()) == set(outcome.backwards.tolist()) == {steps}
    with pytest.raises(UsageError, match="PGD: restarts are united by their worst points"):
        PGD(Linf(eps), restarts=2, last=True)


# what other libraries do at import is theirs
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_torchattacks_takes_the_same_steps(model, batch):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    images, labels = batch
    eps, size, steps = 0.1, 0.03, 8
    for theirs, direction in (
        (torchattacks.BIM(model, eps=eps, alpha=size, steps=steps), Stepping()),
        (torchattacks.MIFGSM(model, eps=eps, alpha=size, steps=steps, decay=0.9), Momentum(0.9)),
    ):
        ours = GradientAttack(
            Linf(eps), steps, start=Natural(), direction=direction, step_size=Constant(size), last=True
        )
        torch.testing.assert_close(ours(model, images, labels), theirs(images, labels), rtol=0, atol=1e-9)
    worst = MIFGSM(Linf(eps), steps, 0.9, step_size=size)(model, images, labels)
    other = torchattacks.MIFGSM(model, eps=eps, alpha=size, steps=steps, decay=0.9)(images, labels)
    fooled = model(other).argmax(1) != labels
    assert 0 < fooled.sum() < 20
    assert not (fooled & (model(worst).argmax(1) == labels)).any(), "what its last point fools, our worst point fools"


def test_an_attack_of_your_own_in_five_lines(model, batch):
    images, labels = batch

    @dataclass(frozen=True)
    class Lookalike(Direction):
        def of(self, gradient, images, memory, threat):
            return threat.steepest(gradient.mean(0, keepdim=True).expand_as(gradient)), None

    found = GradientAttack(Linf(0.1), 1, start=Natural(), direction=Lookalike(), step_size=Constant(0.1), last=True)(
        model, images, labels
    )
    gradient, _ = climb(model, images, labels)
    torch.testing.assert_close(found, (images + 0.1 * gradient.mean(0).sign()).clamp(0, 1))


WRITTEN = [
    GradientAttack(Linf(8 / 255), 50, "dlr", Likely(2), Natural(), Momentum(0.9), Cosine(0.5), GreyLevels()),
    GradientAttack(L2(0.5, box=None), stop=OnceConfident(0.1), restarts=2, aim=RandomClass(), start=Signs(0.25)),
    GradientAttack(L2(0.5), 3, start=SometimesNatural(0.3)),
    GradientAttack(L1(12), step_size=AtLeast(0.02), direction=Steepest(), last=True),
    PGD(Linf(0.1), steps=7, loss="margin", random_start=False, last=True),
    RFGSM(L2(0.7), 0.25),
    BIM(Linf(0.1), 3),
    MIFGSM(Linf(0.1), 3, decay=0.5),
]


@pytest.mark.parametrize("attack", WRITTEN, ids=lambda attack: type(attack).__name__)
def test_an_attack_prints_as_the_expression_that_makes_it(attack):
    names = {name: value for name, value in vars(parts).items() if isinstance(value, type)}
    names |= {kind.__name__: kind for kind in (GradientAttack, PGD, RFGSM, BIM, MIFGSM, Linf, L2, L1)}
    again = eval(repr(attack), names)
    assert again == attack
    assert repr(again) == repr(attack)
    assert again.threat.eps == attack.threat.eps


def test_the_print_shows_every_part():
    shown = repr(WRITTEN[0])
    for part in ("Linf(8/255)", "Likely(rank=2)", "Natural()", "Momentum(decay=0.9)", "Cosine(share=0.5)"):
        assert part in shown
    assert "GreyLevels()" in shown
    assert "AllSteps()" in shown
