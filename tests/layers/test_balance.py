"""BANG's gradients against the equations written out, sample by sample, in float64."""

import copy

import pytest
import torch
from by_definition import balanced_by_definition, relative
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.errors import BalanceError
from bessemer.layers import balance, rates, report_misclassified

BETA, EPSILON = 1.2, 0.8


class Twice(nn.Module):
    """One linear layer called twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Tied(nn.Module):
    """Two linear layers that share their weight but not their bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Attention(nn.Module):
    """A block of self-attention over tokens along dimension 1, in linear layers."""

    def __init__(self):
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(4, 4) for _ in range(3))
        self.key = nn.Linear(4, 4, bias=False)  # the softmax would give its bias a gradient of zero
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        y = self.norm(x)
        return x + self.out(nn.functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y)))


class Residual(nn.Module):
    """Batch norm, and a skip connection around two convolutions, of which the second is called from inside a module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(3, 3, 3, padding=1, bias=False), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
        self.last = nn.ModuleList([nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3))])

    def forward(self, x):
        return torch.relu(x + self.last[0](self.body(x)))


def network(kind):
    flat = nn.Flatten()
    return {
        "linear": lambda: nn.Sequential(flat, nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5)),
        "linear over positions": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), flat, nn.Linear(18, 5)),
        "conv1d": lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), flat, nn.Linear(12, 5)),
        "conv2d": lambda: nn.Sequential(nn.Unflatten(2, (2, 2)), nn.Conv2d(3, 4, 2, padding=1), flat, nn.Linear(36, 5)),
        "conv3d": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2, 1)), nn.Conv3d(3, 2, 2, padding=1), nn.ReLU(), flat, nn.Linear(36, 5)
        ),
        "strided": lambda: nn.Sequential(nn.Conv1d(3, 4, 2, stride=2), nn.ReLU(), flat, nn.Linear(8, 5)),
        "dilated": lambda: nn.Sequential(nn.Conv1d(3, 4, 2, dilation=2), nn.ReLU(), flat, nn.Linear(8, 5)),
        "grouped": lambda: nn.Sequential(nn.Conv1d(3, 6, 2, groups=3), nn.ReLU(), flat, nn.Linear(18, 5)),
        "transposed": lambda: nn.Sequential(
            nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1), nn.ReLU(), flat, nn.Linear(20, 5)
        ),
        "transposed2d": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2)), nn.ConvTranspose2d(3, 2, 2), nn.ReLU(), flat, nn.Linear(18, 5)
        ),
        "transposed3d": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2, 1)), nn.ConvTranspose3d(3, 2, 2), nn.ReLU(), flat, nn.Linear(36, 5)
        ),
        "depthwise": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2)), nn.Conv2d(3, 6, 2, padding=1, groups=3), nn.ReLU(), flat, nn.Linear(54, 5)
        ),
        "dilated2d": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2)), nn.Conv2d(3, 4, 2, padding=1, dilation=(2, 1)), flat, nn.Linear(24, 5)
        ),
        "transposed, grouped, dilated": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2)), nn.ConvTranspose2d(3, 6, 2, groups=3, dilation=2), flat, nn.Linear(96, 5)
        ),
        "channels last": lambda: nn.Sequential(
            nn.Unflatten(2, (2, 2)),
            nn.Conv2d(3, 4, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2),
            flat,
            nn.Linear(16, 5),
        ).to(memory_format=torch.channels_last),
        "tied weights": Tied,
        "attention": lambda: nn.Sequential(Attention(), Attention(), flat, nn.Linear(12, 5)),
        "batch norm": lambda: nn.Sequential(Residual(), Residual(), flat, nn.Linear(12, 5)),
        "reflecting": lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), flat, nn.Linear(16, 5)
        ),
        "in-place relu": lambda: nn.Sequential(
            nn.Conv1d(3, 4, 2), nn.ReLU(inplace=True), flat, nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Linear(6, 5)
        ),
        "re-used module": Twice,
    }[kind]


KINDS = [
    "linear", "linear over positions", "conv1d", "conv2d", "conv3d", "strided", "dilated", "grouped", "transposed",
    "transposed2d", "transposed3d", "depthwise", "dilated2d", "transposed, grouped, dilated", "channels last",
    "tied weights", "attention", "batch norm", "reflecting", "in-place relu", "re-used module",
]  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 4, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 2, 3, 4, 0])


def made(kind, seed=0):
    torch.manual_seed(seed)
    return network(kind)().double()


@pytest.mark.parametrize("misclassified", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_equations_of_the_paper(kind, misclassified, batch):
    images, labels = batch
    model = made(kind)
    expected = balanced_by_definition(copy.deepcopy(model), images, labels, BETA, EPSILON, misclassified)
    with balance(model, BETA, EPSILON, misclassified=misclassified):
        cross_entropy(report_misclassified(model, model(images), labels), labels).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_gradient_is_the_original_one(kind, batch):
    images, labels = batch
    model = made(kind)
    plain = images.clone().requires_grad_()
    cross_entropy(model(plain), labels).backward()
    seen = images.clone().requires_grad_()
    with balance(model, BETA, EPSILON):
        cross_entropy(model(seen), labels).backward()
    assert relative(seen.grad, plain.grad) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_zero_is_ordinary_training(kind, batch):
    images, labels = batch
    model, plain = made(kind), made(kind)
    cross_entropy(plain(images), labels).backward()
    with balance(model, 1.0, 0.0):
        cross_entropy(model(images), labels).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert relative(one.grad, other.grad) < 1e-14


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["conv2d", "in-place relu", "re-used module", "tied weights"])
@pytest.mark.parametrize("misclassified", [1.0, 0.5])
def test_compiled_models_get_the_same_gradients(kind, misclassified, batch):
    images, labels = batch
    model = made(kind)
    expected = balanced_by_definition(copy.deepcopy(model), images, labels, BETA, EPSILON, misclassified)
    torch._dynamo.reset()
    with balance(model, BETA, EPSILON, misclassified=misclassified):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for _ in range(2):  # the second call meets the cached graph
            model.zero_grad()
            cross_entropy(report_misclassified(model, compiled(images), labels), labels).backward()
            for name, parameter in model.named_parameters():
                assert relative(parameter.grad, expected[name]) < 1e-10, name


def test_the_misclassified_factor_follows_each_forward_pass(batch):
    images, labels = batch
    model = made("linear")
    with balance(model, BETA, EPSILON, misclassified=0.5):
        first = report_misclassified(model, model(images), labels)
        second = report_misclassified(model, model(images.flip(0)), labels)
        (cross_entropy(first, labels) + cross_entropy(second, labels)).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    apart = [torch.zeros_like(gradient) for gradient in together]
    for x in (images, images.flip(0)):
        expected = balanced_by_definition(made("linear"), x, labels, BETA, EPSILON, 0.5)
        for total, part in zip(apart, expected.values(), strict=True):
            total += part
    for one, other in zip(together, apart, strict=True):
        assert relative(one, other) < 1e-10


def test_samples_without_gradient_add_nothing(batch):
    images, labels = batch
    model = made("linear")
    kept = [0, 2, 5]
    weight = torch.zeros(6, dtype=torch.float64)
    weight[kept] = 1
    with balance(model, BETA, EPSILON):
        (cross_entropy(model(images), labels, reduction="none") * weight).sum().backward()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        cross_entropy(model(images[kept]), labels[kept], reduction="sum").backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        assert relative(one, parameter.grad) < 1e-12
    assert all(torch.isfinite(gradient).all() for gradient in found)


def test_a_batch_without_any_gradient_stays_finite():
    model = made("linear")
    with balance(model, BETA, EPSILON):
        (model(torch.rand(4, 3, 4, dtype=torch.float64)) * 0).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_a_rate_beyond_float32_does_not_destroy_the_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scale = torch.tensor([20.0, 3e-38])
    with balance(model, 1.0, 1.0):
        (model(torch.rand(2, 2)).sum(1) * scale).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradients_too_small_to_square_in_float32_still_count():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    scale = torch.tensor([1.0, 1e-30])
    with balance(model, 1.0, 0.8):
        (model(torch.eye(2)) * scale[:, None]).sum().backward()
    # the second sample's share is r^(1 - 0.8(1 - r)) with r = 1e-30, about 1e-6, where float32 squares give 0
    torch.testing.assert_close(model.weight.grad[0, 1], torch.tensor(1e-30**0.2), rtol=1e-4, atol=0)


def test_the_switch_leaves_biases_alone(batch):
    images, labels = batch
    for kind in ("conv2d", "transposed", "linear over positions", "grouped"):
        model, plain = made(kind), made(kind)
        expected = balanced_by_definition(copy.deepcopy(model), images, labels, BETA, EPSILON)
        cross_entropy(plain(images), labels).backward()
        with balance(model, BETA, EPSILON, bias=False):
            cross_entropy(model(images), labels).backward()
        ordinary = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            wanted = ordinary[name].grad if name.endswith("bias") else expected[name]
            assert relative(parameter.grad, wanted) < 1e-10, (kind, name)


def test_layers_can_have_their_own_beta_and_epsilon(batch):
    images, labels = batch
    model = made("linear")
    one = balanced_by_definition(made("linear"), images, labels, 0.7, 0.5)
    other = balanced_by_definition(made("linear"), images, labels, 1.3, 0.9)
    with balance(model, {"1": 0.7, "*": 1.3}, {"3": 0.9, "*": 0.5}) as handle:
        assert handle.layers == ["1", "3"]
        cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, (one if name.startswith("1") else other)[name]) < 1e-10


def test_beta_zero_leaves_a_layer_as_it_is(batch):
    images, labels = batch
    model, plain = made("linear"), made("linear")
    cross_entropy(plain(images), labels).backward()
    with balance(model, {"1": 0, "*": 1.0}, EPSILON) as handle:
        assert handle.layers == ["3"]
        cross_entropy(model(images), labels).backward()
    assert relative(model[1].weight.grad, plain[1].weight.grad) < 1e-14
    assert not torch.allclose(model[3].weight.grad, plain[3].weight.grad)


@pytest.mark.parametrize("setting", ["beta", "epsilon"])
def test_a_layer_that_a_mapping_leaves_out_is_left_as_it_is(setting):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with balance(model, **{"beta": 1.5, setting: {"0": 0.8}}) as handle:
        assert handle.layers == ["0"]


def test_evaluation_and_frozen_weights_are_untouched(batch):
    images, labels = batch
    model = made("conv2d")
    with balance(model, BETA, EPSILON):
        model.eval()
        cross_entropy(model(images), labels).backward()
        in_evaluation = [parameter.grad.clone() for parameter in model.parameters()]
        model.train()
        model.requires_grad_(False)
        x = images.clone().requires_grad_()
        assert "_Out" not in type(model[1](model[0](x)).grad_fn).__name__
    plain = made("conv2d")
    cross_entropy(plain(images), labels).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(in_evaluation, plain.parameters(), strict=True))


def test_remove_gives_the_model_back():
    model = made("conv2d")
    before, kinds = model.state_dict(), [type(module) for module in model.modules()]
    handle = balance(model)
    assert [type(module) for module in model.modules()] != kinds
    assert list(model.state_dict()) == list(before)
    handle.remove()
    handle.remove()
    assert [type(module) for module in model.modules()] == kinds
    assert not model._forward_pre_hooks
    assert all(not hasattr(module, "_balance") for module in model.modules())


def test_a_copy_of_a_balanced_model_is_balanced_on_its_own(batch):
    images, labels = batch
    model = made("linear")
    with balance(model, BETA, EPSILON):
        copied = copy.deepcopy(model)
    expected = balanced_by_definition(made("linear"), images, labels, BETA, EPSILON)
    cross_entropy(copied(images), labels).backward()
    assert relative(copied[1].weight.grad, expected["1.weight"]) < 1e-10


def test_autocast_costs_no_more_precision_than_it_always_does(batch):
    images, labels = batch
    plain, reference = made("linear").float(), made("linear")
    cross_entropy(reference(images), labels).backward()
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(plain(images.float()), labels).backward()
    usual = relative(plain[1].weight.grad.double(), reference[1].weight.grad)
    expected = balanced_by_definition(made("linear"), images, labels, BETA, EPSILON)
    model = made("linear").float()
    with balance(model, BETA, EPSILON), torch.autocast("cpu", torch.bfloat16):
        cross_entropy(model(images.float()), labels).backward()
    assert relative(model[1].weight.grad.double(), expected["1.weight"]) < 1.2 * usual


def test_a_gradient_scaler_changes_nothing_and_still_sees_overflow(batch):
    images, labels = batch[0].float(), batch[1]
    found = []
    for scale in (1.0, 2.0**12):
        model = made("linear").float()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with balance(model, BETA, EPSILON), torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found.append(model[1].weight.grad.clone())
        optimizer.zero_grad()
        before = model[1].weight.clone()
        with balance(model, BETA, EPSILON):
            scaler.scale((model(images) * float("inf")).sum()).backward()
        scaler.step(torch.optim.SGD(model.parameters(), lr=0.1))
        scaler.update()
        assert torch.equal(model[1].weight, before)
        assert scaler.get_scale() == scale / 2
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=1e-4)


def test_accumulated_gradients_are_balanced_within_each_pass(batch):
    """The rates compare what one backward pass sees: two halves are not the whole."""
    images, labels = batch
    halves = [
        balanced_by_definition(made("linear"), images[h], labels[h], BETA, EPSILON) for h in (slice(3), slice(3, 6))
    ]
    whole = balanced_by_definition(made("linear"), images, labels, BETA, EPSILON)
    model = made("linear")
    with balance(model, BETA, EPSILON):
        for half in (slice(3), slice(3, 6)):
            (cross_entropy(model(images[half]), labels[half]) / 2).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, (halves[0][name] + halves[1][name]) / 2) < 1e-10, name
        assert relative(parameter.grad, whole[name]) > 1e-5, name


# r·eta, the scaled norm as a share of the largest, computed from equations 3 and 4 by hand
TABLE = {
    0.785: [0.908, 0.656, 0.509, 0.358, 0.138, 0.051, 0.019],
    0.815: [0.908, 0.663, 0.541, 0.411, 0.182, 0.078, 0.033],
    0.840: [0.908, 0.669, 0.570, 0.461, 0.229, 0.110, 0.053],
}


@pytest.mark.parametrize("epsilon", TABLE)
def test_rates_reproduce_the_factor_table(epsilon):
    r = torch.tensor([1.0, 0.9, 0.5, 0.1, 1e-2, 1e-4, 1e-6, 1e-8], dtype=torch.float64)
    shares = (r * rates(r, 1.0, epsilon))[1:]
    torch.testing.assert_close(shares, torch.tensor(TABLE[epsilon], dtype=torch.float64), rtol=0, atol=6e-4)


def test_attention_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    with pytest.raises(BalanceError, match="1 is an nn.MultiheadAttention"):
        balance(model)
    with balance(model, {"1*": 0, "*": 1.0}) as handle:
        assert handle.layers == ["0"]


def test_tokens_folded_into_the_batch_are_refused():
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Linear(4, 4), nn.Linear(12, 2)

        def forward(self, x):
            return self.head(self.tokens(x.flatten(0, 1)).view(len(x), -1))

    model = Folding()
    with balance(model), pytest.raises(BalanceError, match=r"tokens: its input of shape \(15, 4\).*5 samples"):
        model(torch.rand(5, 3, 4))


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(BalanceError, match="nothing to balance"):
        balance(nn.Sequential(nn.ReLU()))
    with pytest.raises(BalanceError, match="negative"):
        balance(nn.Linear(2, 2), beta=-1.0)
    model = nn.Linear(2, 2)
    with balance(model), pytest.raises(BalanceError, match="balanced already"):
        balance(model)


def test_two_handles_on_parts_of_a_model_both_learn_what_is_misclassified(batch):
    images, labels = batch
    model = made("linear")
    expected = balanced_by_definition(made("linear"), images, labels, BETA, EPSILON, 0.5)

    class Whole(nn.Module):
        def __init__(self, body, head):
            super().__init__()
            self.body, self.head = body, head

        def forward(self, x):
            return self.head(self.body(x))

    whole = Whole(model[:3], model[3:])
    with balance(whole.body, BETA, EPSILON, misclassified=0.5), balance(whole.head, BETA, EPSILON, misclassified=0.5):
        cross_entropy(report_misclassified(whole, whole(images), labels), labels).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-10, name


def test_the_flow_on_survives_half_precision():
    """A rate of three million has a reciprocal that half precision cannot hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).half()
    images = torch.rand(2, 4).half()
    weight = torch.tensor([1.0, 1e-5]).half()
    flows = []
    for epsilon in (0.0, 1.3):
        x = images.clone().requires_grad_()
        with balance(model, 1.0, epsilon):
            (model(x).sum(1) * weight).sum().backward()
        flows.append(x.grad.float())
    torch.testing.assert_close(flows[0], flows[1], rtol=0.02, atol=0)


def test_layers_that_are_not_what_they_seem_are_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(BalanceError, match="forward pass of its own"):
        balance(nn.Sequential(Doubled(2, 2)), bias=False)
    with balance(nn.Sequential(Doubled(2, 2))):
        pass
    with pytest.raises(BalanceError, match="no weights yet"):
        balance(nn.Sequential(nn.LazyLinear(2)))


def test_a_part_called_by_itself_cannot_know_what_is_misclassified():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with balance(model, misclassified=0.5), pytest.raises(BalanceError, match="as a whole"):
        model[0](torch.rand(3, 2))
