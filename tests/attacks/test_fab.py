"""FAB: its projections against scipy, its distances against closed forms and another library."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from bessemer.attacks import Goal, Oracle
from bessemer.attacks.fab import FAB, cheapest_rise
from bessemer.data import load
from bessemer.errors import UsageError
from bessemer.threat import THREATS

NORMS = ["Linf", "L2", "L1"]
DUAL = {"Linf": 1, "L2": 2, "L1": math.inf}
ORDER = {"Linf": math.inf, "L2": 2, "L1": 1}


def nearest_by_scipy(point, planes, rises, norm):
    """The least ‖z − point‖ over z in [0, 1]^d with ⟨plane, z − point⟩ ≥ rise for every plane."""
    size = len(point)
    if norm == "L2":
        found = optimize.minimize(
            lambda change: change @ change,
            np.clip(np.linalg.lstsq(planes, rises, rcond=None)[0], -point, 1 - point),
            jac=lambda change: 2 * change,
            bounds=list(zip(-point, 1 - point, strict=True)),
            constraints={"type": "ineq", "fun": lambda change: planes @ change - rises, "jac": lambda change: planes},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        return math.sqrt(found.fun)
    # bounds on |change|: one for all pixels, or one each
    bounds = 1 if norm == "Linf" else size
    spread = np.ones((size, 1)) if norm == "Linf" else np.eye(size)
    found = optimize.linprog(
        np.r_[np.zeros(size), np.ones(bounds)],
        A_ub=np.block([[np.eye(size), -spread], [-np.eye(size), -spread], [-planes, np.zeros((len(planes), bounds))]]),
        b_ub=np.r_[np.zeros(2 * size), -rises],
        bounds=[*zip(-point, 1 - point, strict=True), *[(0, None)] * bounds],
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [2, 6, 20])
def test_the_projection_is_the_nearest_point_of_plane_and_box(norm, size):
    random = np.random.default_rng(size)
    points, weights = random.random((25, size)), random.normal(size=(25, size))
    points[random.random((25, size)) < 0.2] = 0  # no room left on one side
    points[random.random((25, size)) < 0.2] = 1
    weights[:, 1:][random.random((25, size - 1)) < 0.2] = 0
    weights *= 10 ** random.uniform(-6, 6, (25, 1))
    most = np.where(weights > 0, weights * (1 - points), -weights * points).sum(1)
    least = -np.where(weights > 0, weights * points, -weights * (1 - points)).sum(1)
    share = np.linspace(0.02, 0.98, 25)
    rises = share * np.where(random.random(25) < 0.5, most, least)
    change = cheapest_rise(*map(torch.from_numpy, (points, weights, rises)), norm).numpy()
    np.testing.assert_allclose((weights * change).sum(1), rises, rtol=1e-9, atol=1e-12)
    assert (points + change).min() >= -1e-12
    assert (points + change).max() <= 1 + 1e-12
    held = 0
    for i in range(25):
        if rises[i] == 0:
            assert not change[i].any()
            continue
        scale = np.sign(rises[i]) / np.abs(weights[i]).max()
        best = nearest_by_scipy(points[i], weights[i : i + 1] * scale, rises[i : i + 1] * scale, norm)
        assert np.linalg.norm(change[i], ORDER[norm]) == pytest.approx(best, rel=1e-6)
        held += bool(((points[i] + change[i] < 1e-9) | (points[i] + change[i] > 1 - 1e-9)).any())
    assert held > 5, "the box should matter in some of the problems"


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_keeps_shapes_and_rows_apart(norm):
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.rand(6, 2, 3, 3, generator=generator), torch.randn(6, 2, 3, 3, generator=generator)
    rises = torch.tensor([0.1, -0.2, 0.3, 0.0, -0.4, 0.5])
    whole = cheapest_rise(images, weights, rises, norm)
    each = [cheapest_rise(images[i : i + 1], weights[i : i + 1], rises[i : i + 1], norm) for i in range(6)]
    assert torch.equal(whole, torch.cat(each))


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_ends_in_a_corner_where_the_box_is_too_small(norm):
    points, weights = torch.tensor([[0.2, 0.7, 0.5]] * 2), torch.tensor([[1.0, -2.0, 0.0]] * 2)
    change = cheapest_rise(points, weights, torch.tensor([50.0, torch.inf]), norm)
    torch.testing.assert_close(change, torch.tensor([[0.8, -0.7, 0.0]] * 2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_the_projection_is_finite_for_any_scale_of_the_gradient(norm, scale):
    points, weights = torch.full((2, 5), 0.5), torch.tensor([[1.0, -2.0, 0.5, 0.1, 0.0]] * 2) * scale
    change = cheapest_rise(points, weights, torch.tensor([0.3, 0.3 * scale]), norm)
    assert change.isfinite().all()
    if scale in (1e-30, 1e30):
        expected = cheapest_rise(points[:1], weights[:1] / scale, torch.tensor([0.3]), norm)
        torch.testing.assert_close(change[1:], expected)
    if not scale:
        assert not change.any()


class Linear(nn.Module):
    def __init__(self, shape, classes, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(classes, math.prod(shape), generator=generator)
        self.bias = 0.3 * torch.randn(classes, generator=generator)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.to(x.dtype).T + self.bias.to(x.dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize(("shape", "classes"), [((30,), 2), ((1, 5, 5), 3), ((3, 4, 4), 10)])
@pytest.mark.parametrize("targets", [0, 9])
def test_finds_the_exact_distance_of_a_linear_model(norm, count, shape, classes, targets):
    """min_l (z_c − z_l) / ‖w_l − w_c‖ in the dual norm, where no pixel meets the box."""
    model = Linear(shape, classes)
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.02 * torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    logits = model(images)
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    duals = torch.linalg.vector_norm((model.weight - model.weight[labels][:, None]).double(), DUAL[norm], dim=2)
    exact = (gaps / duals).nan_to_num(torch.inf).amin(1)
    found = FAB(norm, steps=20, targets=targets)(model, images, labels)
    assert (model(found).argmax(1) != labels).all()
    distance = THREATS[norm](0.0).size(found - images)
    assert 0 < found.min() <= found.max() < 1, "the box was not to matter here"
    torch.testing.assert_close(distance, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_distance_of_a_linear_model_where_the_box_holds_pixels_back(norm, classes):
    model = Linear((16,), classes, seed=3)
    images = (torch.rand(8, 16, generator=torch.Generator().manual_seed(5)) * 2 - 0.5).clamp(0, 1)
    logits = model(images)
    labels = logits.argmax(1)
    found = FAB(norm, steps=40, targets=3)(model, images, labels)
    assert (model(found).argmax(1) != labels).all()
    planes = (model.weight - model.weight[labels][:, None]).double()
    gaps = (logits.gather(1, labels[:, None]) - logits).double()
    exact = torch.tensor(
        [
            min(
                nearest_by_scipy(image.double().numpy(), plane[[other]].numpy(), gap[[other]].numpy(), norm)
                for other in range(classes)
                if other != label
            )
            for image, plane, gap, label in zip(images, planes, gaps, labels, strict=True)
        ]
    )
    without_box = (gaps / torch.linalg.vector_norm(planes, DUAL[norm], dim=2)).nan_to_num(torch.inf).amin(1)
    assert (exact > 1.02 * without_box).sum() >= 3, "the box was to matter here"
    distance = THREATS[norm](0.0).size(found - images)
    torch.testing.assert_close(distance, exact.float(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_nearest_point_of_a_class_that_the_caller_asks_for(norm):
    """With two classes there is one boundary; with three, the target has to beat both others."""
    images = 0.5 + 0.05 * torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    for classes, slack in ((2, 1e-3), (3, 0.25)):
        model = Linear((16,), classes, seed=3)
        logits = model(images)
        labels = logits.argmax(1)
        target = (labels + 1) % classes
        found = FAB(norm, steps=30)(model, images, labels, target=target)
        assert torch.equal(model(found).argmax(1), target)
        distance = THREATS[norm](0.0).size(found - images)
        for i in range(8):
            others = [k for k in range(classes) if k != target[i]]
            planes = (model.weight[target[i]] - model.weight[others]).double().numpy()
            gaps = (logits[i, others] - logits[i, target[i]]).double().numpy()
            best = nearest_by_scipy(images[i].double().numpy(), planes, gaps, norm)
            assert best * (1 - 1e-4) <= distance[i] <= best * (1 + slack)


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


def distances(model, found, images, labels, norm):
    """How far each image moved, infinite where it is not misclassified."""
    distance = torch.linalg.vector_norm((found - images).flatten(1), ORDER[norm], dim=1)
    with torch.no_grad():
        return distance.masked_fill(model(found).argmax(1) == labels, torch.inf)


RADII = {"Linf": 0.08, "L2": 0.5, "L1": 1.4}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 9])
# what other libraries do at import is theirs
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_torchattacks_agrees(norm, targets, model, batch):
    """Its single runs: the loop around them knows no L1, and keeps whichever point is inside a radius."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    images, labels = batch
    peer = torchattacks.FAB(model, norm=norm, steps=15, multi_targeted=bool(targets))
    theirs = torch.full((200,), torch.inf)
    for peer.target_class in range(2, 11) if targets else [None]:
        run = peer.attack_single_run_targeted if targets else peer.attack_single_run
        theirs = theirs.minimum(distances(model, run(images, labels).detach(), images, labels, norm))
    ours = distances(model, FAB(norm, steps=15, targets=targets)(model, images, labels), images, labels, norm)
    assert theirs.isfinite().all()
    assert ours.median() == pytest.approx(theirs.median().item(), rel=0.02)
    assert (ours <= theirs * 1.001).all(), "theirs has no final search"
    robust, peers = (ours > RADII[norm]).sum(), (theirs > RADII[norm]).sum()
    assert 20 < peers < 180, "a radius that all or none survive compares nothing"
    assert abs(robust - peers) <= 2


@pytest.mark.parametrize("norm", NORMS)
def test_is_no_farther_than_the_way_straight_over_the_nearest_linearised_boundary(norm, model, batch):
    """DeepFool's first step, clipped to the box, at every length up to three times its own."""
    images, labels = batch
    found = distances(model, FAB(norm, steps=15)(model, images, labels), images, labels, norm)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), images).transpose(0, 1).flatten(2)
    logits = model(images).detach()
    straight = torch.full((200,), torch.inf)
    lengths = torch.arange(1, 3, 0.02)[:, None, None, None]
    for i, label in enumerate(labels):
        planes, gaps = jacobian[i] - jacobian[i, label], logits[i, label] - logits[i]
        cost = (gaps / planes.norm(DUAL[norm], dim=1)).nan_to_num(torch.inf)
        plane = planes[cost.argmin()]
        direction = {
            "Linf": plane.sign(),
            "L2": plane / plane.norm(),
            "L1": torch.zeros(64).index_fill(0, plane.abs().argmax(), 1) * plane.sign(),
        }[norm]
        line = (images[i] + lengths * cost.min() * direction.view_as(images[i])).clamp(0, 1)
        straight[i] = distances(model, line, images[i], label, norm).min()
    right = logits.argmax(1) == labels
    crossed = right & straight.isfinite()
    assert crossed.sum() > 30
    assert found[right].isfinite().all()
    ratio = found[crossed] / straight[crossed]
    # a path that bends may end a trifle beyond the straight one
    assert ratio.max() <= 1.005
    assert ratio.mean() < 0.995
    assert not found[~right].any(), "what is misclassified already is its own nearest point"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("targets", [0, 9])
def test_models_of_few_classes(norm, classes, targets):
    torch.manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes)).eval()
    images = torch.rand(12, 1, 4, 4)
    labels = model(images).argmax(1)
    attack = FAB(norm, steps=15, targets=targets, restarts=2)
    outcome = attack.run(model, images, labels)
    assert distances(model, outcome.images, images, labels, norm).isfinite().all()
    forwards, backwards = attack.passes(classes)
    # an image that stands on the boundary to the last bit stays there, and leaves
    assert outcome.forwards.max() == forwards
    assert outcome.backwards.max() == backwards
    if targets:
        assert backwards == 2 * (classes - 1) * 15


def test_more_restarts_and_more_targets_never_help_the_defender(model, batch):
    images, labels = batch[0][:60], batch[1][:60]

    def found(**settings):
        return distances(model, FAB("L2", steps=8, **settings)(model, images, labels), images, labels, "L2")

    assert (found(restarts=3) <= found()).all()
    # the final search on a nearer point may stop a little earlier
    assert (found(targets=9) <= found(targets=1) * 1.01).all()
    assert (found(targets=9) < found(targets=1) * 0.99).any()


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_half_as_far_away_as_the_nearest_point(norm):
    linear, asked = Linear((1, 4, 4), 2), []

    def model(x):
        asked.append(x.detach().clone())
        return linear(x) / linear.weight.norm()

    images = 0.5 + 0.2 * torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    labels = linear(images).argmax(1)
    found = FAB(norm, steps=6, restarts=2)(model, images, labels)
    size = THREATS[norm](0.0).size
    # a look at the originals, two a step, and the final search
    started = size(asked[1 + 2 * 6 + 4] - images)
    expected = size(found - images).clamp_max({"Linf": 0.3, "L2": 1.0, "L1": 5.0}[norm]) / 2
    torch.testing.assert_close(started, expected, rtol=0.02, atol=1e-5)
    assert torch.equal(asked[1], images)


@pytest.mark.parametrize("targets", [0, 3])
def test_images_leave_once_a_point_is_near_enough(targets, model, batch):
    images, labels = batch
    full = FAB("L2", steps=15, targets=targets).run(model, images, labels)
    early = FAB("L2", steps=15, targets=targets, enough=0.5).run(model, images, labels)
    near, nearer = (distances(model, outcome.images, images, labels, "L2") for outcome in (early, full))
    assert ((near <= 0.5) == (nearer <= 0.5)).float().mean() >= 0.99
    done = near <= 0.5
    assert 20 < done.sum() < 180
    assert early.forwards[done].float().mean() < full.forwards.max() / 3
    torch.testing.assert_close(near[~done], nearer[~done])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("enough", [False, True])
def test_targets_side_by_side_find_what_they_find_in_turn(norm, enough, model, batch):
    images, labels, twin = batch[0][:40].double(), batch[1][:40], copy.deepcopy(model).double()
    asked = []

    def asking(x):
        asked.append(len(x))
        return twin(x)

    attack = FAB(norm, steps=10, targets=5, restarts=2, enough=RADII[norm] if enough else 0.0)
    in_turn = attack.run(asking, images, labels)
    assert max(asked) == 40
    beside = attack.run(asking, images, labels, room=130)
    assert 40 < max(asked) <= 130
    far, near = (distances(twin, outcome.images, images, labels, norm) for outcome in (in_turn, beside))
    open_ = far > attack.enough
    assert torch.equal(near > attack.enough, open_)
    torch.testing.assert_close(near[open_], far[open_], rtol=1e-6, atol=0)
    if enough:
        assert 5 < open_.sum() < 35


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 2])
def test_a_zero_gradient_is_a_failure_and_not_a_nan(norm, targets):
    """The constant model moves nothing; the flat one has a gradient for some images only."""
    images = torch.full((4, 1, 2, 2), 0.5)
    images[2:] = 0.2

    def constant(x):
        return (x.flatten(1)[:, :3] * 0) + torch.tensor([3.0, 1.0, 0.0])

    def flat(x):
        lead = torch.relu(x.flatten(1).mean(1, keepdim=True) - 0.3)
        return torch.cat([0.3 + 0 * lead, lead, 0 * lead], 1)

    labels = torch.zeros(4).long()
    outcome = FAB(norm, steps=9, restarts=2, targets=targets).run(constant, images, labels, until_success=True)
    assert torch.equal(outcome.images, images)
    assert outcome.zero_gradients.min() > 0
    assert outcome.gradients.max() <= 2 * max(1, targets), "what cannot move leaves"
    found = FAB(norm, steps=9, targets=targets)(flat, images, labels)
    assert (flat(found).argmax(1) != labels).tolist() == [True, True, False, False]
    assert torch.equal(found[2:], images[2:])


def test_the_nearest_boundary_is_the_one_of_its_definition(model, batch):
    images, labels = batch[0][:30], batch[1][:30]
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), images)
    logits = model(images)
    for norm in NORMS:
        oracle = Oracle(model, images, Goal(labels))
        weights, lead, _ = FAB(norm)._boundary(oracle, images, Goal(labels), torch.arange(30), asked=False)
        for i, label in enumerate(labels):
            far = {
                k: (logits[i, k] - logits[i, label]).abs()
                / (jacobian[k, i] - jacobian[label, i]).flatten().norm(DUAL[norm])
                for k in range(10)
                if k != label
            }
            chosen = min(far, key=far.get)
            torch.testing.assert_close(weights[i], jacobian[chosen, i] - jacobian[label, i], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(lead[i], logits[i, chosen] - logits[i, label])
    aim = Goal(labels, (labels + 4) % 10)
    weights, lead, _ = FAB(targets=1)._boundary(oracle, images, aim, torch.arange(30), asked=False)
    for i, (label, target) in enumerate(zip(labels, aim.target, strict=True)):
        torch.testing.assert_close(weights[i], jacobian[target, i] - jacobian[label, i], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(lead[i], logits[i, target] - logits[i, label])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "L3"}, "L3"),
        ({"steps": 0}, "1 step"),
        ({"restarts": 0}, "1 restart"),
        ({"targets": -1}, "targets"),
        ({"enough": math.nan}, "enough"),
        ({"alpha_max": 1.5}, "alpha_max"),
        ({"eta": 0.9}, "eta"),
        ({"beta": 1.0}, "beta"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, message):
    with pytest.raises(UsageError, match=message):
        FAB(**settings)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_logits_may_be_of_another_type_than_the_images(norm, targets, model, batch):
    images, labels = batch[0][:5], batch[1][:5]
    attack = FAB(norm, steps=5, targets=targets, restarts=2)
    found = attack(lambda x: model(x).double(), images, labels)
    assert found.dtype == images.dtype
    torch.testing.assert_close(found, attack(model, images, labels), rtol=0, atol=1e-4)
