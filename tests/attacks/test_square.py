"""The square attack: legal squares, the authors' schedule, and the peers' robust accuracy."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.attacks import Goal, Oracle, losses
from bessemer.attacks.square import SQUARES, Square, _Squares, _two_bumps
from bessemer.data import load
from bessemer.errors import UsageError
from bessemer.threat import L1, L2, Linf

pytestmark = [
    # what other libraries do at import is theirs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

EACH_NORM = [Linf(0.12), L2(0.7), L1(2.5)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = load("digits").train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(model):
    images, labels = load("digits").test.at(slice(0, 220))
    right = model(images).argmax(1) == labels
    return images[right][:200], labels[right][:200]


def fooled(model, images, labels):
    return model(images).argmax(1) != labels


class Recorder:
    """A model that remembers what it was asked."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __call__(self, images):
        self.asked.append(images.clone())
        return self.model(images)


@pytest.mark.parametrize("threat", EACH_NORM, ids=str)
@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 6, 10), (2, 11, 3), (3, 2, 2), (20,), (1,)])
def test_every_question_is_inside_ball_and_box(threat, shape):
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    weights = torch.randn(images[0].numel(), 3, generator=torch.Generator().manual_seed(1))
    model = Recorder(lambda x: x.flatten(1) @ weights)
    Square(threat, queries=80)(model, images, torch.zeros(6).long())
    assert len(model.asked) == 80
    for asked in model.asked:
        threat.require(asked, images, slack=1e-6)


def test_real_vectors_have_no_box():
    images = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    for threat in (Linf(2.0, box=None), L2(3.0, box=None), L1(5.0, box=None)):
        found = Square(threat, queries=50)(lambda x: x @ weights, images, torch.zeros(5).long())
        threat.require(found, images)
        torch.testing.assert_close(threat.size(found - images), torch.full((5,), threat.eps))


def test_linf_squares_are_what_algorithm_2_draws():
    """Stripes first; then each question differs from an earlier one in a square of the schedule's side, at ±eps."""
    images = torch.full((1, 3, 12, 12), 0.5)
    attack = Square(Linf(0.1), queries=200)
    # a loss that always climbs: each question is accepted, so each builds on the last
    model = Recorder(lambda x: torch.zeros(len(x), 3))
    count = iter(range(1000))
    climbing = Square(Linf(0.1), queries=200, loss=lambda goal, logits: logits[:, 0] + next(count))
    climbing(model, images, torch.zeros(1).long())
    first = model.asked[0][0]
    torch.testing.assert_close(first.sub(0.5).abs(), torch.full_like(first, 0.1))
    assert (first == first[:, :1]).all(), "every column has one colour"
    seen = set()
    for query, (before, after) in enumerate(zip(model.asked, model.asked[1:], strict=False), start=1):
        change = (after - before)[0]
        side = max(1, round(math.sqrt(attack.share_at(query) * 144)))
        rows, cols = (change.abs().amax((0, k)) > 0 for k in (2, 1))
        assert rows.any(), "a question that changes nothing is wasted"
        for line in (rows, cols):
            places = line.nonzero()[:, 0]
            assert places[-1] - places[0] < side
        inside = after[0][:, rows][:, :, cols]
        if rows.sum() == cols.sum() == side:
            assert (inside == inside[:, :1, :1]).all(), "one colour per channel"
            seen.add(side)
    assert seen == {1, 2, 3, 4, 5, 8, 11} & seen
    assert len(seen) >= 4


def test_places_and_colours_are_uniform():
    images = torch.full((4000, 2, 5, 5), 0.5)
    squares = SQUARES["Linf"](Linf(0.1), images)
    squares.resize(4 / 25)
    draws = torch.rand(4000, squares.numbers, generator=torch.Generator().manual_seed(0))
    # every pixel half way: none is at an end, so no square is idle
    changed = squares.propose(images, images, draws) - images
    corner = (changed[:, 0] != 0).flatten(1).float().argmax(1)
    counts = torch.bincount(corner, minlength=25).view(5, 5)[:4, :4].float()
    assert counts.sum() == 4000
    assert (counts - 250).abs().max() < 5 * math.sqrt(250)
    colours = changed.flatten(2).sum(2).sign()
    assert colours.mean(0).abs().max() < 0.08
    assert (colours[:, 0] * colours[:, 1]).mean().abs() < 0.08


def test_the_schedule_is_the_authors_and_scales_with_the_queries():
    def published(iteration):
        halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
        return 0.8 / 2 ** len([limit for limit in halvings if iteration > limit])

    full, tenth = Square(Linf(0.1), queries=10_000), Square(Linf(0.1), queries=1000)
    assert [full.share_at(query) for query in range(1, 10_000)] == [published(i) for i in range(9999)]
    assert [tenth.share_at(query) for query in range(1, 1000)] == [published(10 * i) for i in range(999)]


def test_bumps_are_equation_2():
    """The equation with its own indices, from 1, for squares of side 7 split into widths of 3 and 4."""

    def eta(h1, h2):
        n = h1 // 2
        out = torch.zeros(h1, h2)
        for r in range(1, h1 + 1):
            for s in range(1, h2 + 1):
                m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
                out[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
        return out

    for side in (3, 5, 7, 11):
        expected = torch.cat([eta(side, side // 2), -eta(side, side - side // 2)], 1)
        torch.testing.assert_close(_two_bumps(side, side), expected)


@pytest.mark.parametrize(("power", "threat"), [(2, L2(0.9, box=None)), (1, L1(3.0, box=None))])
def test_a_square_takes_what_two_held_as_in_algorithm_3(power, threat):
    """Against the algorithm written out for one image at a time, in its own words."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(40, 3, 9, 9, generator=generator)
    x = threat.project(images + 0.05 * torch.randn(40, 3, 9, 9, generator=generator), images)
    squares = SQUARES[threat.norm](threat, images)
    squares.resize(0.3)
    h = squares.high
    assert (h, squares.wide) == (5, 5)
    draws = torch.rand(40, squares.numbers, generator=generator)
    found = squares.propose(x, images, draws)
    bumps = _two_bumps(h, h)
    for i in range(40):
        nu = (x[i] - images[i]).double()
        (r1, s1, r2, s2), turned, colours = (draws[i, :4] * (9 - h + 1)).int().tolist(), draws[i, 4], draws[i, 5:]
        window_1, window_2 = torch.zeros(2, 9, 9, dtype=torch.bool)
        window_1[r1 : r1 + h, s1 : s1 + h] = True
        window_2[r2 : r2 + h, s2 : s2 + h] = True
        pattern = (bumps if turned < 0.5 else bumps.T).double()
        pattern = pattern / pattern.flatten().norm(power)
        unused = threat.eps**power - nu.abs().pow(power).sum()
        new = nu.clone()
        for c in range(3):
            available = (nu[c][window_1 | window_2].abs().pow(power).sum() + unused.clamp(min=0) / 3) ** (1 / power)
            old = nu[c][window_1].view(h, h)
            mixed = colours[c].sub(0.5).sign() * pattern + old / old.flatten().norm(power).clamp(min=1e-12)
            new[c][window_2] = 0
            new[c][window_1] = (mixed / mixed.flatten().norm(power) * available * (3 if power == 1 else 1)).flatten()
        expected = threat.project((images[i] + new)[None], images[i][None].double())[0]
        torch.testing.assert_close(found[i].double(), expected, rtol=0, atol=1e-5)
        assert threat.size((found[i] - images[i])[None]).item() == pytest.approx(threat.eps, rel=1e-4)


@pytest.mark.parametrize("threat", EACH_NORM, ids=str)
def test_only_a_rise_of_the_loss_is_kept(threat, model, batch):
    """The run's best loss, replayed from the questions, is what the returned image has."""
    images, labels = batch[0][:20], batch[1][:20]
    asking = Recorder(model)
    found = Square(threat, queries=60)(asking, images, labels)
    values = torch.stack([losses.margin(Goal(labels), model(asked)) for asked in asking.asked])
    torch.testing.assert_close(losses.margin(Goal(labels), model(found)), values.amax(0))


@pytest.mark.parametrize("threat", EACH_NORM, ids=str)
def test_more_queries_with_the_same_squares_and_more_restarts_never_lose(threat, model, batch):
    """With squares of one size throughout, a longer run begins as the shorter one; else the schedule differs."""
    images, labels = batch[0][:60], batch[1][:60]
    share = 1 / 64  # one pixel (L2 and L1: nine, the least that a bump takes) all the way
    short, long = (Square(threat, queries=queries, share=share)(model, images, labels) for queries in (60, 150))
    restarted = Square(threat, queries=60, share=share, restarts=2)(model, images, labels)
    worse = [losses.margin(Goal(labels), model(found)) for found in (short, long, restarted)]
    assert (worse[1] >= worse[0]).all()
    assert (worse[2] >= worse[0]).all()
    assert (worse[1] > worse[0]).any()
    assert (worse[2] > worse[0]).any()
    # a success of the short run is one of the others, and their first queries are the same
    early = [
        Square(threat, queries=queries, share=share).run(model, images, labels, until_success=True)
        for queries in (60, 150)
    ]
    won = fooled(model, early[0].images, labels)
    assert won.any()
    assert torch.equal(early[0].forwards[won], early[1].forwards[won])
    assert torch.equal(early[0].images[won], early[1].images[won])


@pytest.mark.parametrize("threat", EACH_NORM, ids=str)
def test_no_gradient_is_needed(threat, model, batch):
    """Logits in whole steps, computed by NumPy: there is nothing to differentiate."""
    images, labels = batch[0][:60], batch[1][:60]

    def quantised(x):
        return torch.from_numpy(np.round(model((x * 63).round() / 63).numpy() * 2) / 2)

    clean = fooled(quantised, images, labels)
    outcome = Square(threat, queries=150).run(quantised, images, labels, until_success=True)
    assert fooled(quantised, outcome.images, labels).sum() >= clean.sum() + 8
    assert (outcome.backwards == 0).all()


@pytest.mark.parametrize("threat", EACH_NORM, ids=str)
def test_splitting_a_batch_changes_nothing(threat, model, batch):
    """In float64: a float32 logit that is rounded otherwise in a batch of another size can turn a search elsewhere."""
    images, labels, model = batch[0][:30].double(), batch[1][:30], copy.deepcopy(model).double()
    attack = Square(threat, queries=100, restarts=2)
    whole = attack.run(model, images, labels, seed=4, until_success=True)
    pieces = [
        attack.run(model, images[cut], labels[cut], seed=4, index=torch.arange(30)[cut], until_success=True)
        for cut in (slice(0, 1), slice(1, 12), slice(12, 30))
    ]
    torch.testing.assert_close(torch.cat([piece.images for piece in pieces]), whole.images, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([piece.forwards for piece in pieces]), whole.forwards)
    assert not torch.equal(attack(model, images, labels, seed=5), attack(model, images, labels, seed=4))


def test_counts_its_passes(model, batch):
    images, labels = batch[0][:40], batch[1][:40]
    attack = Square(Linf(0.12), queries=50, restarts=3)
    assert attack.passes(10) == (150, 0)
    assert (attack.run(model, images, labels).forwards == 150).all()
    early = attack.run(model, images, labels, until_success=True)
    assert torch.equal(early.forwards < 150, fooled(model, early.images, labels) & (early.forwards < 150))
    assert early.forwards.min() < 50


def test_reaches_a_target(model, batch):
    images, labels = batch[0][:60], batch[1][:60]
    target = (labels + 1) % 10
    found = Square(Linf(0.25), queries=150)(model, images, labels, target=target)
    assert (model(found).argmax(1) == target).sum() > (model(images).argmax(1) == target).sum() + 10


def test_answers_that_are_not_a_number_reach_nothing(batch):
    images, labels = batch[0][:10], batch[1][:10]

    def broken(x):
        """NaN for every image that moved, but the first."""
        moved = (x != images[: len(x)]).flatten(1).any(1)
        logits = 3 * nn.functional.one_hot(labels[: len(x)], 10).float()
        return torch.where((moved & (torch.arange(len(x)) > 0))[:, None], torch.nan, logits)

    outcome = Square(Linf(0.1), queries=20).run(broken, images, labels)
    assert torch.equal(outcome.images[1:], images[1:])
    assert not outcome.images.isnan().any()


def test_a_radius_of_nothing_changes_nothing(model, batch):
    for threat in (Linf(0.0), L2(0.0), L1(0.0)):
        assert torch.equal(Square(threat, queries=20)(model, *batch), batch[0])


def test_success_is_what_the_untouched_model_says(model, batch):
    """Searching through a stand-in that gives in at once: the model itself has to agree before an image leaves."""
    images, labels = batch[0][:20], batch[1][:20]
    other = labels[:1] + 1 - 2 * (labels[:1] == 9)
    outcome = Square(Linf(0.12), queries=30).run(
        model,
        images,
        labels,
        until_success=True,
        through=lambda x: model(x) + 100 * nn.functional.one_hot(other.expand(len(x)), 10),
    )
    held = ~fooled(model, outcome.images, labels)
    gullible = labels != other
    assert (outcome.forwards[held] >= 30).all(), "the stand-in gave in thirty times, the model never did"
    assert (held & gullible).any()
    assert (~held & gullible).any()
    assert (outcome.forwards[~held] < 30).any()


@pytest.mark.parametrize(
    "wrong",
    [{"queries": 0}, {"restarts": 0}, {"share": 0.0}, {"share": 1.5}, {"loss": "hinge"}, {"targeted_loss": "hinge"}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        Square(Linf(0.1), **wrong)


def test_an_oracle_is_asked_for_logits_only(model, batch, monkeypatch):
    for question in ("gradient", "jacobian"):
        monkeypatch.setattr(Oracle, question, lambda *_: pytest.fail("a black-box attack asked for a gradient"))
    Square(Linf(0.1), queries=5)(model, *batch)


QUERIES = 200


@pytest.mark.parametrize(
    ("peer", "threat"), [("torchattacks", Linf(0.1)), ("torchattacks", L2(0.6)), ("art", Linf(0.1))], ids=str
)
def test_leaves_as_much_robust_accuracy_as_its_peers(peer, threat, model, batch, monkeypatch):
    """Theirs never reach the last row and column (a range whose end is left out); with that, ours finds as much.

    Without, it finds more. (ART's L2 start is 0 / 0 on images as small as these.)
    """
    images, labels = batch
    theirs = share_left(model, PEERS[peer](model, threat, images, labels), labels)
    attack = Square(threat, queries=QUERIES)
    whole = share_left(model, attack.run(model, images, labels, until_success=True).images, labels)

    def corner(squares, draws):
        down, right = max(1, squares.height - squares.high), max(1, squares.width - squares.wide)
        return (draws[:, :1] * down).long(), (draws[:, 1:] * right).long()

    monkeypatch.setattr(_Squares, "_corner", corner)
    alike = share_left(model, attack.run(model, images, labels, until_success=True).images, labels)
    assert 0.2 < theirs < 0.8, "an attack that fools all or none compares nothing"
    pooled = (alike + theirs) / 2
    assert abs(alike - theirs) < 1.96 * math.sqrt(2 * pooled * (1 - pooled) / len(labels))
    assert whole < theirs


def share_left(model, images, labels):
    return 1 - fooled(model, images, labels).float().mean().item()


def torchattacks_square(model, threat, images, labels):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    return torchattacks.Square(model, norm=threat.norm, eps=threat.eps, n_queries=QUERIES)(images, labels)


def art_square(model, threat, images, labels):
    evasion = pytest.importorskip("art.attacks.evasion", reason="art is not installed: make bench installs it")
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    np.random.seed(0)
    attack = evasion.SquareAttack(wrapped, eps=threat.eps, max_iter=QUERIES, batch_size=200, verbose=False)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


PEERS = {"torchattacks": torchattacks_square, "art": art_square}
