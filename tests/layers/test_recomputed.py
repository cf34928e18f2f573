"""A network whose blocks are computed twice against the same network without that, bit for bit."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.layers import balance, consistent, mixture_norm, recomputed, report_misclassified, route

BOTH = ("clean", "adversarial")


class Blocks(nn.Module):
    """Residual blocks that can be recomputed."""

    def __init__(self, again):
        super().__init__()
        self.again = again
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1),
                nn.BatchNorm2d(4, momentum=momentum),
                nn.ReLU(inplace=True),
                nn.Dropout(0.3),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4, affine=False),
            )
            for momentum in (0.1, None)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + (recomputed(block, x) if self.again else block(x))
        return self.head(x.mean((2, 3)))


def pair():
    torch.manual_seed(0)
    plain, again = Blocks(False).double(), Blocks(True).double()
    again.load_state_dict(plain.state_dict())
    return plain, again


def images(count=6, seed=1):
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(model, call):
    """Everything a training step leaves."""
    torch.manual_seed(2)
    x = images().requires_grad_()
    logits = call(model, x)
    total = cross_entropy(logits, torch.arange(len(logits)) % 3)
    total.backward()
    parameters = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits, "images": x.grad, **parameters, **{f"buffer {n}": b for n, b in model.named_buffers()}}


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def direct(model, x):
    return model(x)


def one_after_the_other(model, x):
    """Two routes in one backward pass: when it comes neither is in force any more."""
    return torch.cat([route(model, "clean")(x[:4]), route(model, "adversarial")(x[2:])])


def jointly(model, x):
    return route(model, {"clean": 2, "adversarial": 4})(x)


@pytest.mark.parametrize("training", [True, False])
def test_ordinary_batch_norms(training):
    plain, again = (model.train(training) for model in pair())
    for _ in range(2):  # the second step starts from the buffers of the first
        equal(step(again, direct), step(plain, direct))
    assert plain.blocks[0][1].num_batches_tracked == again.blocks[0][1].num_batches_tracked == 2 * training


@pytest.mark.parametrize("call", [one_after_the_other, jointly])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_mixture_norms_on_their_routes(call, statistics, affine):
    plain, again = (mixture_norm(model, BOTH, statistics, affine) for model in pair())
    for _ in range(2):
        expected = step(plain, call)
        equal(step(again, call), expected)
    assert again.stem[1].routing.route is None


def test_the_route_of_the_forward_pass_whatever_is_in_force_later():
    plain, again = (mixture_norm(model) for model in pair())
    found = {}
    for model in (plain, again):
        torch.manual_seed(2)
        logits = route(model, "clean")(images())

        class Backward(nn.Module):
            def forward(self, logits):
                logits.square().sum().backward()

        within = Backward()
        within.model = model
        route(within, "adversarial")(logits)
        found[model] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    equal(found[again], found[plain])
    assert any("clean" in name for name in found[again])


def test_consistent_batch_norms():
    plain, again = pair()
    before = copy.deepcopy(dict(again.named_buffers()))
    with consistent(plain), consistent(again):
        equal(step(again, direct), step(plain, direct))
    equal(dict(again.named_buffers()), before)


def test_the_buffers_stay_the_same_tensors_also_after_an_error():
    _, again = pair()
    buffers = list(again.buffers())
    logits = again(images())
    hook = again.blocks[0][4].register_forward_pre_hook(lambda layer, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits.sum().backward()
    hook.remove()
    assert all(one is other for one, other in zip(again.buffers(), buffers, strict=True))
    assert again.blocks[0][1].num_batches_tracked == 1


def test_activations_are_not_kept():
    """Of the output of the first convolution in a block nothing remains until the backward pass."""
    kept = {}
    for model in pair():
        references = []
        model.blocks[0][0].register_forward_hook(lambda layer, inputs, output: references.append(weakref.ref(output)))
        logits = model(images())
        gc.collect()
        kept[model.again] = references[0]() is not None
        del logits
    assert kept == {True: False, False: True}


@pytest.mark.parametrize("misclassified", [1.0, 0.5])
def test_balanced_layers_in_passes_of_different_sizes(misclassified):
    """The second forward pass has another batch size than the first, whose blocks are recomputed after it."""
    found = []
    for model in pair():
        mixture_norm(model)
        with balance(model, 1.2, 0.8, misclassified):

            def call(model, x):
                parts = []
                for branch, part in (("clean", x), ("adversarial", x[2:])):
                    logits = route(model, branch)(part)
                    parts.append(report_misclassified(model, logits, torch.arange(len(part)) % 3))
                return torch.cat(parts)

            found.append(step(model, call))
    equal(*found)


def test_frozen_weights_as_in_an_attack():
    plain, again = (model.eval().requires_grad_(False) for model in pair())
    equal(step(again, direct), step(plain, direct))


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
# and it looks at the gradient of every input
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("call", [one_after_the_other, jointly])
def test_compiled(call):
    found = []
    for model in pair():
        mixture_norm(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # the compiler cannot average over all batches
        torch._dynamo.reset()
        called = torch.compile(model, fullgraph=True, backend="aot_eager") if model.again else model
        found.append([step(model, lambda _, x: call(called, x)) for _ in range(2)])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)
