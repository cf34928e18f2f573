"""Which samples still move the weights: against gradients one sample at a time, and with nothing disturbed."""

import copy
import math
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer import models
from bessemer.data import Batch, load
from bessemer.errors import UsageError
from bessemer.layers import balance
from bessemer.randomness import subseed
from bessemer.records import read_metrics
from bessemer.records import stalling as record
from bessemer.records.movement import moments
from bessemer.training import SGD, Bang, Checkpoint, LowRank, OnlyLayers, Plain, Recipe, train
from bessemer.training.checkpoint import newest
from bessemer.training.schedules import Fixed
from bessemer.training.stalling import stalling, stalling_of
from bessemer.training.trainer import loop
from bessemer.training.update import Update

N = 12


def built(dropout=0.0):
    """A small classifier that is sure of itself, so that its gradients differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, 2, groups=2),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(98, 5),
    )
    with torch.no_grad():
        model[7].weight *= 30
    return model


def batch(n=N, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=random), torch.randint(5, (n,), generator=random)


def one_by_one(model, layers, images, labels):
    """|kappa_i| of each layer: a forward and backward pass a sample, in float64, for a loss that is a mean over all."""
    model = copy.deepcopy(model).double()
    found = {name: [] for name in layers}
    for image, label in zip(images.double(), labels, strict=True):
        outputs = {}
        hooks = [
            model.get_submodule(name).register_forward_hook(
                # a copy goes on, so that what is kept is not overwritten by an in-place ReLU
                lambda layer, inputs, output, name=name: outputs.update({name: output}) or output.clone()
            )
            for name in layers
        ]
        loss = cross_entropy(model(image[None]), label[None]) / len(images)
        for hook in hooks:
            hook.remove()
        for name, gradient in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            found[name].append(gradient.norm())
    return {name: torch.stack(norms) for name, norms in found.items()}


def effective(c):
    return float(c.sum() ** 2 / (c**2).sum() / len(c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_norms_are_those_of_samples_taken_one_at_a_time(dtype, batch_size):
    images, labels = batch()
    model = built().to(dtype).eval()  # running statistics, so that a sample alone is what it is in the batch
    expected = one_by_one(model, "037", images, labels)
    found = stalling(model, images.to(dtype), labels, batch_size=batch_size)
    assert list(found.layers) == list("037")
    correct = model(images.to(dtype)).argmax(1) == labels
    assert torch.equal(found.correct, correct)
    assert found.accuracy == pytest.approx(correct.double().mean().item())
    for name, layer in found.layers.items():
        norms = expected[name] * N / (batch_size or N)  # a mean over fewer
        torch.testing.assert_close(layer.before.sizes, norms, rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=0)
        assert layer.after is None
        assert layer.before.correct_share == pytest.approx(float(norms[correct].sum() / norms.sum()), rel=1e-4)
        assert layer.before.effective_share == pytest.approx(effective(norms), rel=1e-4)
        logs = (norms / norms.max()).log10()
        assert layer.log_norms([0.25, 0.5]) == pytest.approx(
            logs.quantile(torch.tensor([0.25, 0.5]).double()), abs=1e-4
        )


@pytest.mark.parametrize("misclassified", [1.0, 0.5])
def test_after_balancing_is_the_direct_formula(misclassified):
    images, labels = batch()
    model = built().double().eval()
    beta, epsilon = {"7": 1.5, "3": 0.0, "*": 0.7}, {"0": 0.8, "*": 0.6}
    found = stalling(model, images.double(), labels, beta=beta, epsilon=epsilon, misclassified=misclassified)
    correct = (model(images.double()).argmax(1) == labels).tolist()
    assert 0 < sum(correct) < N
    assert found.layers["3"].after is None
    for name, layer_beta, layer_epsilon in (("0", 0.7, 0.8), ("7", 1.5, 0.6)):
        norms = one_by_one(model, name, images, labels)[name].tolist()
        sizes = []
        for norm, right in zip(norms, correct, strict=True):
            r = norm / max(norms)
            rho = layer_epsilon * (1 if right else misclassified) * (1 - r)
            sizes.append(layer_beta * (1 / r) ** rho * norm)
        after = found.layers[name].after
        torch.testing.assert_close(after.sizes, torch.tensor(sizes, dtype=torch.float64), rtol=1e-10, atol=0)
        share = sum(size for size, right in zip(sizes, correct, strict=True) if right) / sum(sizes)
        assert after.correct_share == pytest.approx(share, rel=1e-10)
        assert after.effective_share == pytest.approx(effective(torch.tensor(sizes)), rel=1e-5)


def test_an_epsilon_that_follows_from_a_target_reaches_it():
    images, labels = batch()
    model = built().double().eval()
    for layer in stalling(model, images.double(), labels, beta=1.0, epsilon=1.0, contributing=0.96).layers.values():
        assert layer.before.effective_share < 0.94
        assert layer.after.effective_share == pytest.approx(0.96, abs=0.01)


def test_one_sample_that_makes_the_whole_update_is_seen():
    """Logits that are the pixels: gaps of 40 leave gradients of e^-40, one of 200 none, and one label is wrong."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
    images = torch.tensor([[40.0, 0.0]] * 8 + [[200.0, 0.0], [3.0, 0.0]]).view(10, 1, 1, 2)
    labels = torch.tensor([0] * 9 + [1])
    found = stalling(model, images, labels, beta=1.0, epsilon=0.9)
    layer = found.layers["1"]
    assert found.accuracy == 0.9
    assert found.gaps([0.5, 1.0]) == [40, 200]
    assert layer.zero_share == 0.1
    assert layer.before.effective_share == pytest.approx(0.1)
    small, large = math.exp(-40) / 10, 0.952574 * math.sqrt(2) / 10  # in float32 the true class's part is rounded away
    assert layer.before.correct_share == pytest.approx(8 * small / large, rel=1e-4)
    ratio = small / large
    assert layer.log_norms([0.5]) == pytest.approx([math.log10(ratio)], abs=1e-4)
    balanced = ratio ** (1 - 0.9 * (1 - ratio))
    assert layer.after.correct_share == pytest.approx(8 * balanced / (8 * balanced + 1), rel=1e-4)
    assert layer.after.effective_share == pytest.approx((8 * balanced + 1) ** 2 / (8 * balanced**2 + 1) / 10, rel=1e-4)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 70), (torch.float64, 300)])
def test_gradients_far_below_the_square_root_of_the_smallest_float_count(dtype, gap):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).to(dtype)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
    images = torch.tensor([[gap, 0.0]] * 4, dtype=dtype).view(4, 1, 1, 2)
    found = stalling(model, images, torch.zeros(4, dtype=torch.int64)).layers["1"]
    assert found.before.effective_share == pytest.approx(1)
    assert found.before.sizes[0].item() == pytest.approx(math.exp(-gap) / 4, rel=1e-5, abs=0)


@pytest.mark.parametrize("method", [Bang(), Bang(misclassified=0.5, bias=False), LowRank(2, inside=Bang())])
def test_a_balanced_model_gives_the_gradients_before_balancing(method):
    images, labels = batch()
    model = built(dropout=0.5).train()
    plain = stalling(copy.deepcopy(model), images, labels)
    with ExitStack() as until_done:
        found = stalling(method.prepare(model, until_done), images, labels)
        for name, layer in found.layers.items():
            assert torch.equal(layer.before.sizes, plain.layers[name].before.sizes)


def test_dropout_and_batch_statistics_are_what_an_update_sees():
    images, labels = batch()
    model = built(dropout=0.5).train()
    found = stalling(model, images, labels, seed=3)
    torch.manual_seed(subseed(3, 4))
    logits = model(images).detach().double()
    kappa = (logits.softmax(1) - nn.functional.one_hot(labels, 5)) / N  # of cross-entropy, in closed form
    torch.testing.assert_close(found.layers["7"].before.sizes, kappa.norm(dim=1), rtol=1e-4, atol=0)
    evaluated = stalling(model.eval(), images, labels, seed=3)
    assert not torch.allclose(evaluated.layers["7"].before.sizes, found.layers["7"].before.sizes)


class Reused(nn.Module):
    """One layer called twice, another never, and one on rows that are no samples."""

    def __init__(self):
        super().__init__()
        self.twice, self.unused, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(64, 5)
        self.rows, self.aside = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, images):
        x = self.rows(images.flatten(0, 2)).view(-1, 8, 8)
        self.aside(x)
        x = self.twice(x).relu()
        return self.head(self.twice(x).flatten(1))


def test_a_layer_that_is_called_twice_counts_with_both_outputs_and_balances_each():
    torch.manual_seed(0)
    images, labels = batch()
    model = Reused().double()
    found = stalling(model, images.double(), labels, beta=1.0, epsilon=0.8)
    assert list(found.layers) == ["twice", "head"]
    outputs = []
    hook = model.twice.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    loss = cross_entropy(model(images.double()), labels)
    hook.remove()
    calls = torch.stack([one.flatten(1).norm(dim=1) for one in torch.autograd.grad(loss, outputs)])
    torch.testing.assert_close(found.layers["twice"].before.sizes, calls.square().sum(0).sqrt())
    r = calls / calls.max(dim=1, keepdim=True).values
    scaled = calls * r ** (0.8 * (r - 1))
    torch.testing.assert_close(found.layers["twice"].after.sizes, scaled.square().sum(0).sqrt())


def test_frozen_layers_are_measured_and_not_balanced():
    images, labels = batch()
    with ExitStack() as until_done:
        model = OnlyLayers("7", inside=Bang()).prepare(built().train(), until_done)
        found = stalling(model, images, labels, beta=1.0)
        assert all(module.training for module in model.modules())
    assert [layer.after is None for layer in found.layers.values()] == [True, True, False]


def test_a_model_that_prepares_its_images_without_gradients_is_measured():
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, images):
            with torch.no_grad():
                images = images * 2
            return self.net(images)

    images, labels = batch()
    found = stalling(Prepared(), images, labels)
    expected = stalling(built(), 2 * images, labels)
    assert torch.equal(found.layers["net.0"].before.sizes, expected.layers["0"].before.sizes)


def test_the_model_comes_back_exactly_as_it_was():
    images, labels = batch()
    model = built(dropout=0.5).train()
    model[1].eval()
    cross_entropy(model(images), labels).backward()
    model[0].weight.requires_grad_(False)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random, hooks = torch.get_rng_state(), [len(module._forward_hooks) for module in model.modules()]
    with torch.no_grad(), balance(model):
        stalling(model, images, labels, beta=1.0)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == [place != 2 for place in range(9)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor._version == before[name][1]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 7
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_hooks_come_off_and_random_numbers_come_back_also_after_an_error():
    images, labels = batch()
    model, scalar = built(dropout=0.5), nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    random = torch.get_rng_state()
    for wrong in (images[:, :, :4], images[:0]):
        with pytest.raises((RuntimeError, UsageError)):
            stalling(model, wrong, labels)
    with pytest.raises(UsageError, match="returns logits"):
        stalling(scalar, images, labels)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_no_gradient_at_all_is_no_number_and_is_not_noted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(500 * torch.eye(2))
    found = stalling(model, torch.tensor([[[[1.0, 0.0]]]] * 3), torch.zeros(3, dtype=torch.int64), beta=1.0)
    assert found.layers["1"].zero_share == 1
    assert math.isnan(found.layers["1"].before.correct_share)
    assert {key for key in found.numbers() if "/" in key} == {"zero_share/1"}
    assert all(math.isfinite(value) for value in found.numbers().values())


SHORT = ["training.iterations=30", "training.validate_every=10", "training.checkpoint_every=30"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("bang-digits", ["model.dropout=0.5"]),
        ("bang-digits", ["method.misclassified=0.5"]),
        ("bang-digits", ["method.contributing=0.5", "method.epsilon=0.815"]),
        ("digits", ["method.name=plain", "method.label_smoothing=0.1"]),
        ("adversarial-digits", ["method.attack.steps=2"]),
    ],
)
def test_a_run_ends_in_the_same_bits_with_and_without_it(recipe, changes, tmp_path):
    chosen = Recipe.named(recipe, [*SHORT, *changes])
    train(chosen, tmp_path / "with", note=stalling_of(chosen))
    train(chosen, tmp_path / "without")
    one, other = (Checkpoint.read(newest(tmp_path / name)) for name in ("with", "without"))
    assert same(one.weights, other.weights)
    assert same(one.random, other.random)
    for number, state in one.optimizer["state"].items():
        assert torch.equal(state["velocity"], other.optimizer["state"][number]["velocity"])
    noted = read_metrics(tmp_path / "with" / "metrics.jsonl")
    assert list(record.course(noted, record.ACCURACY)) == [0, 10, 20, 30]
    assert list(moments(noted, record.CORRECT)[30]) == ["conv1", "conv2", "ip1", "ip2"]
    assert bool(moments(noted, record.CORRECT_BALANCED)) == recipe.startswith("bang")


@pytest.mark.parametrize("method", [Plain(), Bang(misclassified=0.5), LowRank(1, inside=Bang())])
def test_training_with_dropout_and_batch_norm_ends_in_the_same_bits(method):
    images, labels = batch()

    class Stream:
        def next(self):
            return Batch(images, labels, torch.arange(N), seed=0)

    def trained(measured):
        model = built(dropout=0.5)
        torch.manual_seed(1)

        def after_step(done, loss):
            if measured:
                stalling(model, images, labels, beta=1.0, batch_size=5)
            return True

        with ExitStack() as until_done:
            prepared = method.prepare(model, until_done)
            optimizer = SGD([{"params": [each for each in prepared.parameters() if each.requires_grad]}], 0.1, 0.9)
            update = Update(prepared, method, optimizer)
            loop(prepared, Stream(), update, optimizer, Fixed(), 0.1, 5, after_step)
        return {**model.state_dict(), "random": torch.get_rng_state()}

    assert same(trained(measured=True), trained(measured=False))


def test_balancing_is_found_inside_another_method():
    chosen = Recipe.named("digits", ['method={name="low-rank", rank=1, inside={name="bang", epsilon=0.5}}'])
    model = models.build("digits-net")
    with ExitStack() as until_done:
        found = stalling_of(chosen)(chosen.method.prepare(model, until_done))
    assert "correct_share_balanced/ip2" in found


def test_the_probe_is_fixed_and_of_the_recipes_seed():
    one, other = (Recipe.named("digits", [f"seed={seed}"]) for seed in (0, 1))
    torch.manual_seed(0)
    model = models.build("digits-net")
    found = stalling_of(one)(model)
    assert found == stalling_of(one)(model)
    assert found != stalling_of(other)(model)
    assert found[record.IMAGES] == 500


def test_the_loss_is_the_recipes_own():
    """With label smoothing a sample that is as sure as the target asks for has no gradient, a surer one has."""
    chosen = Recipe.named("digits", ["method.name=plain", "method.label_smoothing=0.5", "model.dropout=0"])
    torch.manual_seed(0)
    model = models.build("digits-net").double()
    split = load("digits").train
    found = stalling_of(chosen)
    index = torch.randperm(len(split), generator=torch.Generator().manual_seed(subseed(chosen.seed, 3)))[:500]
    images, labels = split.at(index)
    model.float()
    logits = model(images).detach().double()
    target = 0.5 * nn.functional.one_hot(labels, 10) + 0.05
    norms = (logits.softmax(1) - target).norm(dim=1)
    correct = logits.argmax(1) == labels
    expected = float(norms[correct].sum() / norms.sum())
    assert found(model)["correct_share/ip2"] == pytest.approx(expected, rel=1e-3)
