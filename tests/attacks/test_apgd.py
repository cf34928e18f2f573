"""APGD against its algorithms written out image by image, known optima, and other libraries."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.attacks.apgd import APGD, periods
from bessemer.data import load
from bessemer.threat import L1, L2, Linf


class Recorder(nn.Module):
    """A small curved network in float64 that keeps the images it was asked about."""

    def __init__(self, pixels, classes=4, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = 3 * torch.randn(pixels, 16, dtype=torch.float64, generator=generator)
        self.second = torch.randn(16, classes, dtype=torch.float64, generator=generator)
        self.asked = []

    def forward(self, x):
        if torch.is_grad_enabled() or len(x) > 1:
            self.asked.append(x.detach().clone())
        return torch.sin((x.flatten(1) - 0.5) @ self.first) @ self.second

    def value(self, x, label):
        x = x[None].clone().requires_grad_()
        value = cross_entropy(self(x), label[None])
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient[0]


def images(count, pixels, walls=0.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, pixels, generator=generator, dtype=torch.float64)
    return x.round().where(torch.rand(count, pixels, generator=generator) < walls, x)


def walked(attack, model, x, labels):
    """The points that a run asked about, from its start: (steps + 1, N, pixels)."""
    model.asked.clear()
    found = attack(model, x, labels)
    return torch.stack(model.asked), found


# --- algorithm 1 of Croce and Hein, 2020 -----------------------------------------------------------------------------


def algorithm_1(f, project, direction, start, eps, steps, checkpoints, rho):
    """One image, with the paper's letters: the points asked about, and how often the step size was halved."""
    W = [0, *checkpoints]
    asked, x, fx, f_max, etas = [], [], [], [], []
    eta, halvings, climbs, point, best = 2 * eps, 0, [], start, (-math.inf, start, None)
    for k in range(steps):
        asked.append(point)
        value, gradient = f(point)
        if k > 0:
            climbs.append(value > fx[-1])
        if value > best[0]:
            best = value, point, gradient
        f_max.append(best[0])
        etas.append(eta)
        if k in W[1:]:
            begin = W[W.index(k) - 1]
            condition_1 = sum(climbs[begin:k]) < rho * (k - begin)
            condition_2 = etas[begin] == etas[k] and f_max[begin] == f_max[k]
            if condition_1 or condition_2:
                eta, halvings = eta / 2, halvings + 1
                value, point, gradient = best
        x.append(point)
        fx.append(value)
        z = project(x[k] + eta * direction(gradient))
        point = project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])) if k else z
    return torch.stack([*asked, point]), halvings


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.8)], ids=str)
@pytest.mark.parametrize("rho", [0.75, 0.3])  # at 0.3 it is mostly condition 2 that halves
def test_linf_and_l2_walk_as_algorithm_1_says(threat, rho):
    steps, model, x = 30, Recorder(6), images(8, 6)
    with torch.no_grad():
        labels = model(x).argmax(1)
    path, _ = walked(APGD(threat, steps, rho=rho), model, x, labels)
    assert len(path) == steps + 1

    def inside(point, original):
        change = point - original
        change = (
            change.clamp(-threat.eps, threat.eps)
            if threat.norm == "Linf"
            else change * min(1, threat.eps / max(change.norm().item(), 1e-12))
        )
        return (original + change).clamp(0, 1)

    def direction(gradient):
        return gradient.sign() if threat.norm == "Linf" else gradient / gradient.norm()

    halvings = []
    for i in range(len(x)):
        expected, count = algorithm_1(
            lambda point: model.value(point, labels[i]),
            lambda point: inside(point, x[i]),
            direction,
            path[0, i],
            threat.eps,
            steps,
            [7, 13, 18, 21, 24, 27, 28],
            rho,
        )
        torch.testing.assert_close(path[:, i], expected, rtol=0, atol=1e-6)
        halvings.append(count)
    assert max(halvings) >= 2, "a walk that never halves its step tests no checkpoint"
    assert len(set(halvings)) > 1, "each image has a step size of its own"


def test_checkpoints_are_the_published_ones():
    assert list(periods(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(periods(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(periods(1000)) == [220, 410, 570, 700, 800, 870, 930, 990]
    for steps in range(1, 60):
        share, before, naive = 0.22, 0.0, []
        while share < 1:
            naive.append(math.ceil(round(share * steps, 9)))
            share, before = share + max(share - before - 0.03, 0.06), share
        assert list(periods(steps)) == sorted(set(naive))


# --- l1-APGD of Croce and Hein, 2021 ---------------------------------------------------------------------------------


def sparse_walk(f, start, original, eps, steps):
    """One image, with lists and sorting; the points asked about, and the pixels moved at the end of each ball."""
    wide = 3 * steps // 10
    asked, supports, x, best = [], [], start, start
    for ball, (times, length) in enumerate([(3, wide), (2, wide), (1, steps - 2 * wide)]):
        threat = L1(times * eps)
        if ball:
            x = threat.project(best[None], original[None])[0]
        d = len(x)
        support = int((x != original).sum()) if ball else d
        kept = support * 2 // 3 if ball else d // 5
        eta, best_value = threat.eps, -math.inf
        for i in range(length):
            asked.append(x)
            value, gradient = f(x)
            if value > best_value:
                best_value, best, best_gradient = value, x, gradient
            if ball < 2 and i == length - 1:
                break
            if i and i % max(1, length // 25) == 0:
                now = int((best != original).sum())
                if now < 0.95 * support:
                    eta, x, gradient = threat.eps, best, best_gradient
                else:
                    eta = max(eta / 1.5, threat.eps / 10)
                support, kept = now, now * 2 // 3
            free = [p for p in range(d) if not (x[p] <= 0 and gradient[p] < 0) and not (x[p] >= 1 and gradient[p] > 0)]
            chosen = sorted(free, key=lambda p: -abs(gradient[p].item()))[: max(1, kept)]
            step = torch.zeros_like(x)
            for p in chosen:
                step[p] = gradient[p].sign() / len(chosen)
            x = threat.project((x + eta * step)[None], original[None])[0]
        supports.append(int((best != original).sum()))
    return torch.stack([*asked, x]), supports


@pytest.mark.parametrize("steps", [20, 50])
def test_l1_walks_as_its_algorithm_says(steps):
    model, x = Recorder(40, seed=3), images(4, 40, walls=0.3)
    with torch.no_grad():
        labels = model(x).argmax(1)
    path, found = walked(APGD(L1(0.6), steps), model, x, labels)
    assert len(path) == steps + 1, "wider balls cost no pass more"
    supports = []
    for i in range(len(x)):
        expected, support = sparse_walk(lambda point: model.value(point, labels[i]), path[0, i], x[i], 0.6, steps)
        torch.testing.assert_close(path[:, i], expected, rtol=0, atol=1e-6)
        supports.append(support)
    sizes = L1(0.6).size((path - x).flatten(0, 1)).view(steps + 1, -1)
    wide = 3 * steps // 10
    assert (sizes[:wide].amax(0) > 1.2 + 1e-6).any()
    assert sizes[wide : 2 * wide].amax() <= 1.2 + 1e-9
    assert sizes[2 * wide :].amax() <= 0.6 + 1e-9
    assert L1(0.6).size(found - x).amax() <= 0.6 + 1e-9, "points of the wider balls do not count"
    assert max(last for *_, last in supports) < 20


def naive_projection(point, original, eps):
    """The quadratic programme, by scipy: the change as a difference of two parts that are not negative."""
    d = len(point)
    target = (point - original).numpy()

    def objective(parts):
        gap = parts[:d] - parts[d:] - target
        return 0.5 * (gap @ gap), [*gap, *-gap]

    solution = minimize(
        objective,
        [0.0] * (2 * d),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1 - v) for v in original.tolist()] + [(0, v) for v in original.tolist()],
        constraints={"type": "ineq", "fun": lambda parts: eps - parts.sum(), "jac": lambda parts: -parts * 0 - 1},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return original + torch.as_tensor(solution.x[:d] - solution.x[d:])


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("spread", [0.05, 0.7, 3.0])
def test_projection_solves_the_quadratic_programme(eps, spread):
    x = images(6, 8, walls=0.4)
    point = x + spread * torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = L1(eps).project(point, x)
    expected = torch.stack([naive_projection(p, o, eps) for p, o in zip(point, x, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_projection_without_a_box_is_the_one_onto_the_ball():
    x = images(6, 50)
    point = x + torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for eps in (0.0, 0.3, 5.0, 1000.0):
        threat = L1(eps, box=None)
        torch.testing.assert_close(threat.project(point, x), x + threat.into_ball(point - x), rtol=0, atol=1e-12)


def test_projection_is_legal_near_and_uses_the_radius_in_float32():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 64, 64, generator=generator)
    point = x + torch.randn(x.shape, generator=generator) * (torch.rand(x.shape, generator=generator) < 0.1)
    threat = L1(12.0)
    found = threat.project(point, x)
    threat.require(found, x)
    torch.testing.assert_close(threat.size(found - x), torch.full((4,), 12.0), rtol=1e-5, atol=0)
    clipped = (x + threat.into_ball(point - x)).clamp(0, 1)
    assert 6.5 < threat.size(clipped - x).min() < threat.size(clipped - x).max() < 9.2, "as docs/pitfalls.md says"
    assert ((found - point).flatten(1).norm(dim=1) < (clipped - point).flatten(1).norm(dim=1)).all()
    torch.testing.assert_close(threat.project(found, x), found, rtol=0, atol=1e-6)


# --- known optima ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", [APGD(Linf(0.1), 20), APGD(L2(0.4), 50), APGD(L1(0.4), 50), APGD(L1(0.4), 50, loss="margin")], ids=repr
)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_finds_the_optimum_of_a_linear_model(attack, count):
    """eps times the dual norm of the weights, where the box does not matter."""
    weight = torch.randn(24, generator=torch.Generator().manual_seed(2)) / 4
    x = torch.full((count, 24), 0.5)
    found = attack(lambda x: torch.stack([x @ weight, -(x @ weight)], 1), x, torch.zeros(count).long())
    dual = torch.linalg.vector_norm(weight, {"Linf": 1, "L2": 2, "L1": math.inf}[attack.threat.norm])
    torch.testing.assert_close((x - found) @ weight, (attack.threat.eps * dual).expand(count), rtol=2e-3, atol=0)


@pytest.mark.parametrize("eps", [0.4, 3.0, 12.0])
def test_l1_comes_near_the_optimum_of_a_linear_model_in_the_box(eps):
    """The known optimum goes to the walls, steepest pixel first, until the radius is used up."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(400, generator=generator) / 20
    x = torch.rand(8, 400, generator=generator)
    x = x.round().where(torch.rand(8, 400, generator=generator) < 0.3, x)
    room = torch.where(weight > 0, x, 1 - x)[:, weight.abs().argsort(descending=True)]
    used = (eps - (room.cumsum(1) - room)).clamp_min(0).minimum(room)
    best = (used * weight.abs().sort(descending=True).values).sum(1)
    found = APGD(L1(eps))(lambda x: torch.stack([x @ weight, -(x @ weight)], 1), x, torch.zeros(8).long())
    gain = (x - found) @ weight
    assert (gain <= best * (1 + 1e-5)).all()
    assert (gain >= 0.98 * best).all()


# --- starts, targets, passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(0.2, box=None), L2(0.8, box=None), L1(0.6, box=None)], ids=str)
def test_starts_at_a_random_point_of_the_rim(threat):
    model, x = Recorder(6), images(64, 6)
    labels = torch.zeros(64).long()
    path, _ = walked(APGD(threat, 1), model, x, labels)
    change = path[0] - x
    torch.testing.assert_close(threat.size(change), torch.full((64,), threat.eps, dtype=torch.float64))
    assert (change.mean(0).abs() < 0.5 * change.abs().mean(0)).all(), "as often up as down"
    assert len({tuple(each) for each in change.sign().int().tolist()}) > 20
    twice, _ = walked(APGD(threat, 1, restarts=2), model, x, labels)
    assert torch.equal(twice[0], path[0])
    assert not torch.isclose(twice[2], path[0]).all(1).any(), "every restart starts elsewhere"


def test_targets_are_the_likeliest_other_classes_in_turn():
    model, x = Recorder(6, classes=7), images(9, 6)
    with torch.no_grad():
        logits = model(x)
    labels = logits.argsort(1)[:, 4]  # neither the likeliest nor the least likely
    aimed = []

    def loss(goal, logits):
        aimed.append(goal.target.clone())
        return logits.gather(1, goal.target[:, None])[:, 0]

    APGD(Linf(0.05), 2, restarts=2, targets=3, loss=loss)(model, x, labels)
    expected = []
    for i in range(9):
        order = sorted(range(7), key=lambda k: -logits[i, k].item())
        expected.append([k for k in order if k != labels[i]][:3])
    assert [each.tolist() for each in aimed[::6]] == torch.tensor(expected).T.tolist()
    assert all(torch.equal(aimed[i], aimed[i - i % 6]) for i in range(len(aimed)))


def test_any_misclassification_counts_also_on_the_way_to_a_target():
    """The way to class 1 leads through class 2: an attack that insisted on its target would not stop there."""

    def model(x):
        level = x.flatten(1)[:, :1]
        return torch.cat([0.6 - level, level - 0.8, 0.1 - 100 * (level - 0.55).square()], 1)

    x = torch.full((4, 1, 1, 1), 0.4)
    outcome = APGD(Linf(0.16), 10, targets=1)
    with torch.no_grad():
        assert model(x).argsort(1, descending=True)[0].tolist() == [0, 1, 2]
    found = outcome.run(model, x, torch.zeros(4).long(), until_success=True)
    assert (model(found.images).argmax(1) == 2).all()


def test_a_target_of_the_callers_own_wins():
    model, x = Recorder(6), images(8, 6)
    with torch.no_grad():
        labels = model(x).argmax(1)
    target = (labels + 1) % 4
    for loss in ("cross-entropy", "dlr"):
        own = APGD(Linf(0.3), 10, loss=loss, targets=3)(model, x, labels, target=target)
        assert torch.equal(own, APGD(Linf(0.3), 10, loss=loss)(model, x, labels, target=target))
        with torch.no_grad():
            assert (model(own).argmax(1) == target).sum() >= 6


def test_an_image_that_is_wrong_already_needs_no_target_run():
    model, x = Recorder(6), images(8, 6)
    with torch.no_grad():
        labels = (model(x).argmax(1) + 1) % 4
    outcome = APGD(Linf(0.1), 10, targets=3).run(model, x, labels, until_success=True)
    assert set(outcome.forwards.tolist()) == {1}
    assert torch.equal(outcome.images, x)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(Linf(0.01), 7),
        APGD(L2(0.01), 7, restarts=3),
        APGD(L1(0.01), 1),
        APGD(L1(0.01), 13, restarts=2),
        APGD(Linf(0.01), 5, targets=2, restarts=2),
        APGD(L1(0.01), 5, targets=9),
    ],
    ids=repr,
)
def test_passes_are_as_foretold(attack):
    model, x = Recorder(6), images(8, 6)
    with torch.no_grad():
        labels = model(x).argmax(1)
    outcome = attack.run(model, x, labels)
    forwards, backwards = attack.passes(4)
    assert set(outcome.forwards.tolist()) == {forwards}
    assert set(outcome.backwards.tolist()) == {backwards}
    strong = replace(attack, threat=replace(attack.threat, eps=0.5)).run(model, x, labels, until_success=True)
    assert strong.forwards.max() <= forwards


def test_an_image_walks_alone():
    """That others leave, or were never there, changes nothing for those that stay."""
    model, x = Recorder(40), images(12, 40)
    with torch.no_grad():
        labels = model(x).argmax(1)
    for threat in (Linf(0.005), L2(0.03), L1(0.1)):
        attack = APGD(threat, 20, restarts=2, loss="dlr")
        stayed = attack.run(model, x, labels)
        left = attack.run(model, x, labels, until_success=True)
        with torch.no_grad():
            standing = model(stayed.images).argmax(1) == labels
            assert torch.equal(standing, model(left.images).argmax(1) == labels)
        assert 0 < standing.sum() < 12, "all or none standing tests nothing"
        torch.testing.assert_close(left.images[standing], stayed.images[standing], rtol=0, atol=1e-9)


def test_zero_gradients_are_counted_for_every_point_of_an_image():
    def flat(x):
        return 0 * x.flatten(1).sum(1, keepdim=True) + torch.arange(6.0).flip(0)

    x, labels = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    attack = APGD(Linf(0.1), steps=10, targets=4, loss="margin")
    in_turn, beside = (attack.run(flat, x, labels, until_success=True, room=room) for room in (4, 100))
    assert torch.equal(beside.zero_gradients, beside.gradients)
    assert torch.equal(beside.zero_gradients, in_turn.zero_gradients)


@pytest.mark.parametrize("threat", [Linf(0.003), L2(0.02), L1(0.07)], ids=str)
@pytest.mark.parametrize("room", [9, 20, 100])
def test_targets_side_by_side_find_what_they_find_in_turn(threat, room):
    """Same points where nobody leaves, same verdicts where images do; and never more rows at once than allowed."""
    model, x = Recorder(40, classes=7), images(9, 40)
    with torch.no_grad():
        labels = model(x).argmax(1)
    attack = APGD(threat, 20, restarts=2, targets=5, loss="margin")
    for early in (False, True):
        in_turn = attack.run(model, x, labels, until_success=early)
        model.asked.clear()
        beside = attack.run(model, x, labels, until_success=early, room=room)
        assert max(map(len, model.asked)) <= max(room, len(x))
        if room == 100:
            assert max(map(len, model.asked)) > len(x)
        with torch.no_grad():
            standing = model(in_turn.images).argmax(1) == labels
            assert 0 < standing.sum() < 9, "all or none standing tests nothing"
            assert torch.equal(model(beside.images).argmax(1) == labels, standing)
        same = torch.ones(9).bool() if not early else standing
        torch.testing.assert_close(beside.images[same], in_turn.images[same], rtol=0, atol=1e-9)
        assert torch.equal(beside.forwards[same], in_turn.forwards[same])


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(2.0), Linf(0.0), L2(0.0), L1(0.0)], ids=str)
@pytest.mark.parametrize("targets", [0, 2])
def test_no_gradient_is_no_nan(threat, targets):
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = APGD(threat, 12, targets=targets)(
        lambda x: x.flatten(1)[:, :3] * 0 + torch.tensor([3.0, 1.0, 0.0]), x, torch.zeros(4).long()
    )
    threat.require(found, x)
    assert found.isfinite().all()


def test_what_the_reader_is_told():
    assert APGD(Linf(0.1), loss="dlr", targets=9).remarks(10) == []
    assert APGD(Linf(0.1), loss="dlr").remarks(3) == []
    (alone,) = APGD(Linf(0.1), loss="dlr").remarks(2)
    assert "DLR needs 3 classes" in alone
    fallback, fewer = APGD(Linf(0.1), loss="dlr", targets=9).remarks(3)
    assert "targeted DLR needs 4 classes" in fallback
    assert "9 targets were asked for, the model has 2" in fewer


# --- peers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    x, labels = data.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), *data.test.at(slice(0, 200))


def standing(model, x, labels):
    with torch.no_grad():
        return int((model(x).argmax(1) == labels).sum())


def agree(ours, theirs, count=200):
    """Never weaker by more than 2 images; and theirs lies within our 95 % interval."""
    share = ours / count
    assert 20 < theirs < 180, "an attack that fools all or none compares nothing"
    assert ours <= theirs + 2
    assert abs(ours - theirs) <= 1.96 * math.sqrt(count * share * (1 - share))


THREATS = [Linf(0.05), Linf(0.08), L2(0.3), L2(0.5)]
# what other libraries do at import is theirs
others = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning")


@others
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_torchattacks_agrees(threat, digits):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    model, x, labels = digits
    for loss, theirs in (("cross-entropy", "ce"), ("dlr", "dlr")):
        peer = torchattacks.APGD(model, norm=threat.norm, eps=threat.eps, steps=50, loss=theirs)(x, labels)
        found = APGD(threat, 50, loss=loss)(model, x, labels)
        agree(standing(model, found, labels), standing(model, peer, labels))
    peer = torchattacks.APGDT(model, norm=threat.norm, eps=threat.eps, steps=20, n_classes=10)(x, labels)
    found = APGD(threat, 20, loss="dlr", targets=9).run(model, x, labels, until_success=True).images
    agree(standing(model, found, labels), standing(model, peer, labels))


@others
@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.5)], ids=str)
def test_art_agrees(threat, digits):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed: make bench installs it")
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model, x, labels = digits
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    theirs = AutoProjectedGradientDescent(
        classifier,
        norm={"Linf": math.inf, "L2": 2}[threat.norm],
        eps=threat.eps,
        eps_step=2 * threat.eps,
        max_iter=50,
        nb_random_init=1,
        batch_size=200,
        loss_type="cross_entropy",
        verbose=False,
    ).generate(x.numpy(), nn.functional.one_hot(labels, 10).numpy())
    found = APGD(threat, 50)(model, x, labels)
    agree(standing(model, found, labels), standing(model, torch.as_tensor(theirs), labels))


@pytest.mark.parametrize("threat", [*THREATS, L1(1.0), L1(2.0)], ids=str)
def test_is_no_weaker_than_pgd(threat, digits):
    model, x, labels = digits
    assert (
        standing(model, APGD(threat)(model, x, labels), labels)
        <= standing(model, PGD(threat, 100)(model, x, labels), labels) + 2
    )


@others
@pytest.mark.parametrize("eps", [1.0, 2.0])
def test_l1_is_no_weaker_than_ead(eps, digits):
    """Foolbox's EAD minimises the L1 distance, so it answers for every radius at once."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    model, x, labels = digits
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    ead = foolbox.attacks.EADAttack(binary_search_steps=3, steps=100, initial_stepsize=0.03, initial_const=1.0)
    _, theirs, fooled = ead(wrapped, x, labels, epsilons=None)
    inside = fooled & (L1(eps).size(theirs - x) <= eps)
    assert inside.sum() > 10, "an attack that fools none compares nothing"
    with torch.no_grad():
        ours = model(APGD(L1(eps), 50)(model, x, labels)).argmax(1) != labels
    assert (inside & ~ours).sum() <= 2
