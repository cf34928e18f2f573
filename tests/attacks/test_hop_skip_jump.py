"""HopSkipJump: near the exact distance where that is known, by the predicted class alone."""

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.attacks import Goal, Oracle
from bessemer.attacks.hop_skip_jump import HopSkipJump
from bessemer.data import load
from bessemer.errors import UsageError
from bessemer.threat import THREATS

pytestmark = [
    # what other libraries do at import is theirs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

NORMS = ["L2", "Linf"]


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
    images, labels = load("digits").test.at(slice(0, 40))
    right = model(images).argmax(1) == labels
    return images[right][:24], labels[right][:24]


def fooled(model, images, labels):
    return model(images).argmax(1) != labels


def distance(norm, found, images):
    return THREATS[norm](0.0).size(found - images)


@pytest.mark.parametrize("norm", NORMS)
def test_comes_near_the_exact_distance_of_a_linear_model(norm):
    """To the hyperplane it is |w·x + b| over the dual norm of w, where the box is far."""
    generator = torch.Generator().manual_seed(0)
    weight, images = torch.randn(64, generator=generator), torch.rand(10, 64, generator=generator) * 0.2 + 0.4
    score = images @ weight
    model = lambda x: torch.stack([x @ weight, -x @ weight], 1)  # noqa: E731
    found = HopSkipJump(norm, steps=20)(model, images, (score < 0).long())
    exact = score.abs() / {"L2": weight.norm(), "Linf": weight.abs().sum()}[norm]
    assert fooled(model, found, (score < 0).long()).all()
    ratio = distance(norm, found, images) / exact
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() < 1.1


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_come_nearer(norm, model, batch):
    images, labels = batch
    reached = [
        distance(norm, HopSkipJump(norm, steps=steps, initial_queries=40)(model, images, labels), images)
        for steps in (1, 4, 12)
    ]
    assert (reached[0] >= reached[1]).all()
    assert (reached[1] >= reached[2]).all()
    assert reached[2].median() < 0.7 * reached[0].median()


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_predicted_class_is_looked_at(norm, model, batch):
    """Logits that say no more than the class lead to the same images, though nothing could be differentiated."""
    images, labels = batch
    attack = HopSkipJump(norm, steps=4, initial_queries=30)

    def class_alone(x):
        return torch.from_numpy(np.eye(10, dtype=np.float32)[model(x).numpy().argmax(1)] * 7)

    assert torch.equal(attack(class_alone, images, labels), attack(model, images, labels))


@pytest.mark.parametrize("norm", NORMS)
def test_returns_images_that_fool_or_the_original(norm, model, batch):
    images, labels = batch
    found = HopSkipJump(norm, steps=3, initial_queries=20)(model, images, labels)
    assert 0 <= found.min() <= found.max() <= 1
    assert fooled(model, found, labels).all()
    wrong = (labels + 1) % 10
    assert torch.equal(HopSkipJump(norm, steps=3)(model, images, wrong), images), "these are misclassified as they are"
    stubborn = HopSkipJump(norm, steps=3, start_draws=2).run(
        lambda x: 3 * nn.functional.one_hot(labels[:1], 10).float().expand(len(x), -1), images, labels[:1].expand(24)
    )
    assert torch.equal(stubborn.images, images)
    assert (stubborn.forwards == 3).all()


def test_nan_is_no_class(batch):
    """Everything but the original answers NaN, or (for the first image) a class."""
    images, labels = batch

    def broken(x):
        same = (x[:, None] == images).flatten(2).all(2).any(1)
        return torch.where(same[:, None], 3 * nn.functional.one_hot(labels[:1], 10).float(), torch.nan)

    found = HopSkipJump(steps=2, start_draws=5)(broken, images, labels[:1].expand(24))
    assert torch.equal(found, images)


def test_the_bisection_ends_at_the_boundary(model, batch):
    """64 ** -1.5 is 0.2 % of the way, and 0.1 % is left for rounding: 0.5 % further in, almost all are right."""
    images, labels = batch
    found = HopSkipJump("L2", steps=2, initial_queries=20)(model, images, labels)
    assert fooled(model, images + 0.995 * (found - images), labels).float().mean() < 0.1


def test_rounding_does_not_undo_it(model, batch):
    """Logits shaken by a hundred times float32's rounding, as a batch of another size might, change no verdict."""
    images, labels = batch
    for norm in NORMS:
        found = HopSkipJump(norm, steps=5, initial_queries=40)(model, images, labels)
        logits = model(found)
        shaken = logits + 1e-5 * logits.abs().amax() * torch.randn(logits.shape, generator=torch.manual_seed(0))
        assert (shaken.argmax(1) != labels).all()


def test_the_votes_point_along_the_gradient_at_the_boundary():
    """For a half space the estimate tends to its normal: with 5,000 directions in 24 pixels the cosine is 0.97."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 6, generator=generator)
    images = torch.full((3, 1, 4, 6), 0.5)

    def model(x):
        score = ((x - 0.5) * weight).flatten(1).sum(1)
        return torch.stack([-score, score], 1)

    attack, rows = HopSkipJump(initial_queries=5000), torch.arange(3)
    goal = Goal(torch.zeros(3).long())
    oracle = Oracle(model, images, goal)
    delta = torch.tensor([0.01, 0.1, 1e-3])
    found = attack._gradient(oracle, images + 1e-6 * weight, delta, goal, rows, 1, 0, rows)
    assert nn.functional.cosine_similarity(found.flatten(1), weight.flatten()[None]).min() > 0.97
    # far inside the wrong class all votes agree: towards the mean of the directions, and back from outside it
    inside, outside = (
        attack._gradient(oracle, images + side * weight, delta, goal, rows, 1, 0, rows) for side in (0.1, -0.1)
    )
    torch.testing.assert_close(inside, -outside, rtol=0, atol=0.2)
    assert inside.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_splitting_a_batch_changes_nothing(norm, model, batch, monkeypatch):
    images, labels = batch
    attack = HopSkipJump(norm, steps=4, initial_queries=30)
    whole = attack.run(model, images, labels, seed=4)
    pieces = [
        attack.run(model, images[cut], labels[cut], seed=4, index=torch.arange(24)[cut])
        for cut in (slice(0, 1), slice(1, 9), slice(9, 24))
    ]
    torch.testing.assert_close(torch.cat([piece.images for piece in pieces]), whole.images, rtol=0, atol=1e-3)
    assert torch.equal(torch.cat([piece.forwards for piece in pieces]), whole.forwards)
    monkeypatch.setattr("bessemer.attacks.hop_skip_jump.CHUNK", 5000)
    torch.testing.assert_close(attack(model, images, labels, seed=4), whole.images, rtol=0, atol=1e-3)
    assert not torch.equal(attack(model, images, labels, seed=5), whole.images)


@pytest.mark.parametrize("norm", NORMS)
def test_counts_its_passes(norm, model, batch):
    images, labels = batch
    attack = HopSkipJump(norm, steps=5, initial_queries=30, max_queries_per_step=50)
    directions = 30 + 42 + 50 + 50 + 50
    outcome = attack.run(model, images, labels)
    assert (outcome.forwards <= attack.passes(10)[0]).all()
    assert (outcome.forwards >= directions).all()
    assert attack.passes(10) == (2 + 100 + directions + 6 * 24 + 5 * 24, 0)
    assert (outcome.backwards == 0).all()


def test_targets_are_refused(model, batch):
    with pytest.raises(UsageError, match="image of the target class"):
        HopSkipJump()(model, *batch, target=(batch[1] + 1) % 10)


@pytest.mark.parametrize(
    "wrong",
    [{"norm": "L1"}, {"steps": 0}, {"initial_queries": 0}, {"max_queries_per_step": 0}, {"start_draws": 0}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        HopSkipJump(**wrong)


STEPS, QUERIES = 10, 50


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("peer", ["art", "foolbox"])
def test_the_median_is_that_of_its_peers_or_nearer(peer, norm, model, batch):
    """Within 15 % of theirs, or below: for L2 ours comes nearer in as many rounds."""
    images, labels = batch
    found = HopSkipJump(norm, steps=STEPS, initial_queries=QUERIES)(model, images, labels)
    ours = distance(norm, found, images).median()
    theirs = distance(norm, PEERS[peer](norm, model, images, labels), images).median()
    assert ours < 1.15 * theirs
    assert ours > 0.5 * theirs, "so much nearer than a peer is not believed"


def art_walk(norm, model, images, labels):
    evasion = pytest.importorskip("art.attacks.evasion", reason="art is not installed: make bench installs it")
    from art.estimators.classification import PyTorchClassifier

    class Single(nn.Module):
        """ART's start is in float64, which no float32 layer takes."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.float())

    loss = nn.CrossEntropyLoss()
    wrapped = PyTorchClassifier(Single(), loss, (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    np.random.seed(0)
    attack = evasion.HopSkipJump(
        wrapped,
        norm={"L2": 2, "Linf": np.inf}[norm],
        max_iter=STEPS,
        init_eval=QUERIES,
        max_eval=10_000,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def foolbox_walk(norm, model, images, labels):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    torch.manual_seed(0)
    np.random.seed(0)
    attack = foolbox.attacks.HopSkipJumpAttack(
        steps=STEPS, initial_gradient_eval_steps=QUERIES, constraint=norm.lower()
    )
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return attack(wrapped, images, labels, epsilons=None)[1]


PEERS = {"art": art_walk, "foolbox": foolbox_walk}
