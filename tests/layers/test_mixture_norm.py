"""Mixture batch norm against plain batch norm, and against its two branches written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD, borrowed
from bessemer.errors import UsageError
from bessemer.layers import balance, branches, keep_branch, mixture_norm, route
from bessemer.layers.mixture_norm import MixtureBatchNorm
from bessemer.threat import Linf

BOTH = ("clean", "adversarial")
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


class Residual(nn.Module):
    """Nested batch norms, one of them used twice and one that is there under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.block = nn.ModuleList([nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))])
        self.again = self.block[0][1]
        self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.again(self.block[0](x)))
        return self.head(x.mean((2, 3)))


def network(dtype=torch.float64):
    torch.manual_seed(0)
    model = Residual().to(dtype)
    with torch.no_grad():  # no branch shall start where every batch norm does
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
                norm.running_mean.uniform_(-0.5, 0.5)
                norm.running_var.uniform_(0.5, 1.5)
    return model


def images(count, seed, dtype=torch.float64):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def different(model):
    """The same model, its branches changed so that they differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "adversarial" in name and value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator, dtype=value.dtype), alpha=0.3)
    return model


def loss(logits):
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    return (logits * weights.cos()).sum()


def grads(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerances)


@pytest.mark.parametrize(("statistics", "affine"), SWITCHES)
@pytest.mark.parametrize("branch", BOTH)
def test_equal_branches_are_plain_batch_norm(statistics, affine, branch):
    plain = network()
    mixture = mixture_norm(copy.deepcopy(plain), BOTH, statistics, affine)
    for training in (True, False):
        x, y = images(5, 1).requires_grad_(), images(5, 1).requires_grad_()
        plain.train(training), mixture.train(training)
        expected, found = plain(x), route(mixture, branch)(y)
        torch.testing.assert_close(found, expected)
        loss(expected).backward(), loss(found).backward()
        torch.testing.assert_close(y.grad, x.grad)
    kept = keep_branch(mixture, branch)
    same(kept.state_dict(), plain.state_dict())
    same(grads(kept), grads(plain))


def test_each_branch_of_a_joint_batch_is_plain_batch_norm():
    """Equal halves through equal branches: each half is what plain batch norm makes of it."""
    plain, mixture = network(), mixture_norm(network())
    x = images(5, 1)
    joint = route(mixture, dict.fromkeys(BOTH, 5))(torch.cat([x, x]))
    expected = plain(x)
    torch.testing.assert_close(joint, torch.cat([expected, expected]))
    for branch in BOTH:
        same(keep_branch(copy.deepcopy(mixture), branch).state_dict(), plain.state_dict())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_joint_forward_pass_is_two_of_one_branch_each(affine, training):
    one = different(mixture_norm(network(), affine=affine)).train(training)
    two = copy.deepcopy(one)
    clean, adversarial = images(5, 1), images(3, 2)
    x = torch.cat([clean, adversarial]).requires_grad_()
    y, z = clean.clone().requires_grad_(), adversarial.clone().requires_grad_()
    joint = route(one, {"clean": 5, "adversarial": 3})(x)
    apart = torch.cat([route(two, "clean")(y), route(two, "adversarial")(z)])
    torch.testing.assert_close(joint, apart)
    loss(joint).backward(), loss(apart).backward()
    torch.testing.assert_close(x.grad, torch.cat([y.grad, z.grad]))
    same(grads(one), grads(two))
    same(one.state_dict(), two.state_dict())


def test_the_order_of_the_parts_is_the_routes():
    model = different(mixture_norm(network())).eval()
    x = images(4, 1)
    found = route(model, {"adversarial": 1, "clean": 3})(x)
    torch.testing.assert_close(found[:1], route(model, "adversarial")(x)[:1])
    torch.testing.assert_close(found[1:], route(model, "clean")(x)[1:])
    assert not torch.allclose(found[1:], route(model, "adversarial")(x)[1:])


@pytest.mark.parametrize(("statistics", "affine"), SWITCHES)
@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_the_switches_by_definition(statistics, affine, dimensions):
    """One layer, a joint batch: every channel's normalisation and affine map written out."""
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    layer = different(mixture_norm(kind(3, momentum=0.2).double(), BOTH, statistics, affine))
    x = torch.randn(7, 3, *[4] * dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = route(layer, {"clean": 4, "adversarial": 3})(x)
    parts = {"clean": slice(0, 4), "adversarial": slice(4, 7)}
    expected = torch.empty_like(x)
    for branch, rows in parts.items():
        seen = x[rows] if statistics else x
        norm = layer.norms[branch if statistics else "every"]
        holder = norm if statistics == affine else layer.affines[branch if affine else "every"]
        for channel in range(3):
            values = seen[:, channel]
            standard = (x[rows, channel] - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            expected[rows, channel] = standard * holder.weight[channel] + holder.bias[channel]
    torch.testing.assert_close(found, expected)
    fresh = different(mixture_norm(kind(3, momentum=0.2).double(), BOTH, statistics, affine))
    for branch, rows in parts.items():
        place = branch if statistics else "every"
        before, after = fresh.norms[place], layer.norms[place]
        values = (x[rows] if statistics else x).transpose(0, 1).flatten(1)
        torch.testing.assert_close(after.running_mean, 0.8 * before.running_mean + 0.2 * values.mean(1))
        torch.testing.assert_close(after.running_var, 0.8 * before.running_var + 0.2 * values.var(1))
        assert after.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("statistics", "affine", "parameters", "buffers"),
    [(True, True, 2, 2), (True, False, 1, 2), (False, True, 2, 1), (False, False, 1, 1)],
)
def test_each_switch_doubles_its_own_numbers_alone(statistics, affine, parameters, buffers):
    plain = network()
    norms = [module for module in plain.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    own = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    before = sum(parameter.numel() for parameter in plain.parameters())
    kept = sum(buffer.numel() for buffer in plain.buffers())
    mixture = mixture_norm(plain, BOTH, statistics, affine)
    assert sum(parameter.numel() for parameter in mixture.parameters()) == before + (parameters - 1) * own
    assert sum(buffer.numel() for buffer in mixture.buffers()) == buffers * kept
    # no two names for one tensor, which a safetensors file could not hold; but the batch norm under two names is one
    storages = {value.data_ptr() for value in mixture.state_dict().values()}
    assert len(storages) == sum(1 for _ in (*mixture.parameters(), *mixture.buffers()))


def test_one_branch_ignores_the_other():
    model = mixture_norm(network())
    x = images(5, 1)
    for training in (True, False):
        model.train(training)
        expected = route(copy.deepcopy(model), "adversarial")(x)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, value in (*other.named_parameters(), *other.named_buffers()):
                if ".clean." in name and value.is_floating_point():
                    value.fill_(torch.nan)
        assert torch.equal(route(other, "adversarial")(x), expected)
        assert route(other, "clean")(x).isnan().all()


@pytest.mark.parametrize(("statistics", "affine"), SWITCHES)
@pytest.mark.parametrize("branch", BOTH)
def test_there_and_back_answers_the_same(statistics, affine, branch):
    model = different(mixture_norm(network(), BOTH, statistics, affine))
    route(model, {"clean": 3, "adversarial": 2})(images(5, 4))
    expected = route(model.eval(), branch)(images(5, 1))
    kept = keep_branch(model, branch)
    assert kept is model
    torch.testing.assert_close(kept(images(5, 1)), expected, rtol=1e-12, atol=1e-12)
    assert kept.state_dict().keys() == network().state_dict().keys()
    assert kept.again is kept.block[0][1]
    assert branches(kept) == ()
    mixture_norm(kept)  # it may go out again


def test_a_batch_norm_by_itself_and_three_branches():
    layer = mixture_norm(nn.BatchNorm1d(3), ("weak", "middle", "strong"))
    assert isinstance(layer, MixtureBatchNorm)
    assert branches(layer) == ("weak", "middle", "strong")
    assert "weak, middle, strong" in repr(layer)
    assert type(keep_branch(layer, "middle")) is nn.BatchNorm1d


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_batch_norms_of_every_setting(settings):
    plain = nn.BatchNorm2d(3, **settings).double()
    for statistics, affine in SWITCHES:
        mixture = mixture_norm(copy.deepcopy(plain), BOTH, statistics, affine)
        torch.testing.assert_close(route(mixture, "clean")(images(4, 1)), copy.deepcopy(plain)(images(4, 1)))
        kept = keep_branch(mixture, "clean")
        assert (kept.affine, kept.track_running_stats) == (plain.affine, plain.track_running_stats)


def test_modes_and_frozen_weights_stay():
    plain = network().eval().requires_grad_(False)
    mixture = mixture_norm(plain)
    assert not any(module.training for module in mixture.modules())
    assert not any(parameter.requires_grad for parameter in mixture.parameters())


def test_gradients_by_finite_differences():
    layer = different(mixture_norm(nn.BatchNorm1d(2).double(), BOTH, statistics=False))
    view = route(layer, {"clean": 2, "adversarial": 3})
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(view, x)


# routes


def test_the_route_before_comes_back():
    model = mixture_norm(network()).eval()
    seen = []
    routing = model.again.routing

    class Asking(nn.Module):
        def forward(self, x):
            seen.append(routing.route)
            if x.dtype == torch.float32:
                raise RuntimeError("planted")
            if len(seen) == 1:
                route(self, "adversarial")(x)
                seen.append(routing.route)
                with pytest.raises(RuntimeError, match="planted"):
                    route(self, {"adversarial": 2})(x.float())
                seen.append(routing.route)
            return x

    asking = Asking()
    asking.part = model
    route(asking, "clean")(images(2, 1))
    assert seen == ["clean", "adversarial", "clean", (("adversarial", 2),), "clean"]
    assert routing.route is None
    x = images(2, 1)
    assert torch.equal(route(route(model, "clean"), "adversarial")(x), route(model, "clean")(x)), "the innermost counts"


def test_a_copy_routes_by_itself():
    model = different(mixture_norm(network())).eval()
    view = route(model, "clean")
    other = copy.deepcopy(view)
    assert other.model.again.routing is other.model.stem[1].routing is not model.again.routing
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(images(2, 1)).abs().sum() > 0
    assert view(images(2, 1)).abs().sum() == 0


def test_an_attack_borrows_a_view():
    model = different(mixture_norm(network(torch.float32)))
    view = route(model, "adversarial")
    assert isinstance(view, nn.Module)
    state = copy.deepcopy(model.state_dict())
    x, labels = images(6, 1, torch.float32), torch.arange(6) % 4
    with borrowed(view, x.device, 0):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    attack = PGD(Linf(8 / 255), steps=3)
    found = attack(view, x, labels)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    same(model.state_dict(), state)
    deployed = keep_branch(copy.deepcopy(model), "adversarial")
    torch.testing.assert_close(found, attack(deployed, x, labels))
    assert not torch.allclose(found, attack(route(model, "clean"), x, labels))


def test_the_state_of_a_view_is_the_models_own():
    model = different(mixture_norm(network()))
    view = route(model, "clean")
    same(view.state_dict(), model.state_dict())
    other = mixture_norm(network())
    route(other, "adversarial").load_state_dict(view.state_dict())
    same(other.state_dict(), model.state_dict())


def test_two_converted_parts_of_one_model():
    first, second = mixture_norm(nn.BatchNorm1d(3)), mixture_norm(nn.BatchNorm1d(3), ("clean", "noisy"))
    model = nn.Sequential(first, second)
    assert branches(model) == ("clean",)
    assert route(model, "clean")(torch.rand(4, 3)).shape == (4, 3)
    with pytest.raises(UsageError, match="'noisy' is not known"):
        route(model, "noisy")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("statistics", "affine"), SWITCHES)
def test_autocast_and_channels_last(memory_format, statistics, affine):
    """Types, layouts and values are those of plain batch norm."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    mixture = mixture_norm(copy.deepcopy(plain), BOTH, statistics, affine)
    plain, mixture = (model.to(memory_format=memory_format) for model in (plain, mixture))
    x = images(4, 1, torch.float32).contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
        found = route(mixture, "clean")(x)
        joint = route(mixture, {"clean": 2, "adversarial": 2})(x)
    assert found.dtype == joint.dtype == expected.dtype == torch.bfloat16
    assert joint.is_contiguous(memory_format=memory_format)
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("outside", [True, False])
def test_compiled_in_one_graph_a_route(outside):
    model = different(mixture_norm(network()))
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def compiled(view):
        return torch.compile(view, fullgraph=True, backend=backend)

    inner = compiled(model)
    x = images(5, 1)
    for _ in range(2):
        for branch in ("clean", "adversarial", {"clean": 2, "adversarial": 3}):
            view = compiled(route(model, branch)) if outside else route(inner, branch)
            found, expected = view(x), route(other, branch)(x)
            torch.testing.assert_close(found, expected)
            loss(found).backward(), loss(expected).backward()
    same(grads(model), grads(other))
    same(model.state_dict(), other.state_dict())
    assert model.again.routing.route is None
    if not outside:
        assert len(graphs) == 3


def test_balancing_and_mixing_do_not_disturb_each_other():
    x, labels = images(6, 1), torch.arange(6) % 4
    found = []
    for first in (True, False):
        model = network()
        if first:
            mixture_norm(model)
        with balance(model, 1.2, 0.8):
            if not first:
                mixture_norm(model)
            cross_entropy(route(model, {"clean": 3, "adversarial": 3})(x), labels).backward()
        found.append(grads(model))
    same(*found)
    model = mixture_norm(network())
    cross_entropy(route(model, {"clean": 3, "adversarial": 3})(x), labels).backward()
    same(
        {name: value for name, value in grads(model).items() if "norms" in name},
        {name: value for name, value in found[0].items() if "norms" in name},
    )
    assert not torch.allclose(grads(model)["stem.0.weight"], found[0]["stem.0.weight"])


# refusals


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_cannot_be_converted():
    with pytest.raises(UsageError, match="no batch norm"):
        mixture_norm(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="already"):
        mixture_norm(mixture_norm(network()))
    with pytest.raises(UsageError, match="two branches"):
        mixture_norm(network(), ("clean",))
    with pytest.raises(UsageError, match="two branches"):
        mixture_norm(network(), "clean")
    with pytest.raises(UsageError, match="differ"):
        mixture_norm(network(), ("clean", "clean"))
    for name in ("a.b", "", "keys", "every", "training"):
        with pytest.raises(UsageError, match="cannot name"):
            mixture_norm(network(), ("clean", name))
    with pytest.raises(UsageError, match="call the model once"):
        mixture_norm(nn.LazyBatchNorm2d())

    class WithReLU(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(UsageError, match="statistics=True and affine=True"):
        mixture_norm(WithReLU(3), affine=False)
    assert (route(mixture_norm(WithReLU(3)), "clean")(torch.rand(4, 3, 2, 2)) >= 0).all()


def test_routes_that_do_not_exist():
    model = mixture_norm(network())
    with pytest.raises(UsageError, match="did you mean 'adversarial'"):
        route(model, "adverserial")
    with pytest.raises(UsageError, match="'noisy' is not known"):
        route(model, {"clean": 1, "noisy": 1})
    with pytest.raises(UsageError, match="no routes"):
        route(network(), "clean")
    with pytest.raises(UsageError, match="no routes"):
        keep_branch(network(), "clean")
    with pytest.raises(UsageError, match="not known"):
        keep_branch(model, "noisy")
    for size in (0, -1, 1.5, True):
        with pytest.raises(UsageError, match="1 image or more"):
            route(model, {"clean": size})
    with pytest.raises(UsageError, match="at least"):
        route(model, {})
    assert branches(network()) == ()


def test_calls_without_a_route_or_with_another_batch():
    model = mixture_norm(network())
    with pytest.raises(UsageError, match="without a route.*route\\(model, 'clean'\\)"):
        model(images(2, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="2 clean \\+ 2 adversarial, should add up to the batch, which has 5 rows"):
        route(model, {"clean": 2, "adversarial": 2})(images(5, 1))
    same(model.state_dict(), before)
