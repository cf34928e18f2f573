"""Bottleneck residual networks: published sizes, the forward pass written out, how they start, checkpointing."""

import copy

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear, max_pool2d

from bessemer.errors import ImagesError, UsageError
from bessemer.layers import Denoising
from bessemer.models import BottleneckResNet, build
from bessemer.models.bottleneck_resnet import DEPTHS, Bottleneck
from bessemer.models.cost import cost

TINY = {"depth": (1, 2), "width": 4, "stem": "cifar", "size": 8, "classes": 3}

# parameters and multiply-adds as torchvision and timm give them; beyond 200 layers, as Xie and Yuille's figure shows
PUBLISHED = [
    ({"depth": 50}, 25_557_032, 4.09),
    ({"depth": 101}, 44_549_160, 7.80),
    ({"depth": 152}, 60_192_808, 11.51),
    ({"depth": 200}, 64_673_832, 15.0),
    ({"depth": 101, "groups": 32, "width_per_group": 8}, 88_791_336, 16.41),
]
DEEP = [(338, 25), (518, 38), (638, 47)]


@pytest.mark.parametrize(("settings", "parameters", "giga"), PUBLISHED, ids=str)
def test_has_the_published_size(settings, parameters, giga):
    found = cost(lambda: BottleneckResNet(**settings))
    assert found.parameters == parameters
    assert found.multiply_adds / 1e9 == pytest.approx(giga, rel=0.002)


@pytest.mark.parametrize(("depth", "giga"), DEEP)
def test_the_deepest_cost_what_the_figure_shows(depth, giga):
    assert round(cost(lambda: BottleneckResNet(depth=depth)).multiply_adds / 1e9) == giga


@pytest.mark.parametrize("depth", DEPTHS)
def test_is_as_deep_as_it_says(depth):
    assert 3 * sum(DEPTHS[depth]) + 2 == depth


def written_out(model, images, groups):
    """The network from its weights and He et al.'s description, with the stride in the 3×3 convolution."""
    state = model.state_dict()

    def step(x, conv, norm, stride=1, groups=1):
        weight = state[f"{conv}.weight"]
        x = conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        return batch_norm(x, *(state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))

    x = (images - state["normalize.mean"]) / state["normalize.std"]
    large = state["stem.weight"].shape[-1] == 7
    x = step(x, "stem", "norm", 2 if large else 1).clamp(min=0)
    if large:
        x = max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate((2, 1, 2)):
        for place in range(count):
            name, stride = f"stages.{stage}.{place}", 2 if stage and not place else 1
            y = step(x, f"{name}.conv1", f"{name}.norm1").clamp(min=0)
            y = step(y, f"{name}.conv2", f"{name}.norm2", stride, groups).clamp(min=0)
            y = step(y, f"{name}.conv3", f"{name}.norm3")
            short = x if place else step(x, f"{name}.short.0", f"{name}.short.1", stride)
            x = (short + y).clamp(min=0)
    return linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 50), ("cifar", 12)])
@pytest.mark.parametrize(("groups", "width_per_group"), [(1, None), (2, 3)])
def test_computes_what_its_description_says(stem, size, groups, width_per_group):
    torch.manual_seed(0)
    model = BottleneckResNet(
        5, depth=(2, 1, 2), width=4, groups=groups, width_per_group=width_per_group, stem=stem, size=size
    ).double()
    for module in model.modules():  # so that no batch norm is the identity, nor zero
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model.learn_statistics(torch.rand(3, 3, size, size))
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(images), written_out(model, images, groups))


def test_starts_as_the_large_batch_recipe_says():
    torch.manual_seed(0)
    model = BottleneckResNet(500, depth=(1, 2), width=32)
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 3
    for block in blocks:
        assert not block.norm3.weight.any()
        assert (block.norm1.weight == 1).all()
        for conv in (block.conv1, block.conv2, block.conv3):
            out, _, height, width = conv.weight.shape
            assert conv.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.1)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.fc.bias.any()


def test_each_block_starts_as_its_short_cut_unless_told_otherwise():
    x = torch.rand(2, 16, 5, 5)  # as after a ReLU
    model = BottleneckResNet(**TINY)
    assert torch.equal(model.stages[0][0](x[:, :4]), model.stages[0][0].short(x[:, :4]).clamp(min=0))
    other = BottleneckResNet(**TINY, zero_gamma=False)
    assert not torch.equal(other.stages[0][0](x[:, :4]), other.stages[0][0].short(x[:, :4]).clamp(min=0))


@pytest.mark.parametrize(
    ("stem", "size", "expected"), [("imagenet", None, 224), ("cifar", None, 32), ("imagenet", 96, 96)]
)
def test_takes_images_of_the_size_that_is_set(stem, size, expected):
    model = build("bottleneck-resnet", depth=[1, 1], width=2, stem=stem, size=size).eval()
    assert model.image_shape == (3, expected, expected)
    assert model(torch.rand(2, 3, expected, expected)).shape == (2, 1000)
    with pytest.raises(ImagesError, match=rf"takes \(N, 3, {expected}, {expected}\)"):
        model(torch.rand(2, 3, expected + 1, expected + 1))


def after(model, images, labels, steps=2):
    """Losses, input gradient and everything that some training steps leave in a network."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(1)  # the same dropout
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval().requires_grad_(False)
    attacked = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(attacked), labels), attacked)
    return {"losses": torch.stack(losses), "gradient": gradient, **model.state_dict()}


@pytest.mark.parametrize("denoising", ["", "gaussian"])
def test_checkpointing_changes_memory_and_nothing_else(denoising):
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    kept = BottleneckResNet(**TINY, dropout=0.3, denoising=denoising, zero_gamma=False).double()
    again = BottleneckResNet(**TINY, dropout=0.3, denoising=denoising, checkpointing=True).double()
    again.load_state_dict(copy.deepcopy(kept.state_dict()))
    expected = after(kept, images, labels)
    assert expected["norm.num_batches_tracked"] == 2
    assert expected["gradient"].any()
    found = after(again, images, labels)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def saved(model, images):
    """How many numbers a forward pass keeps for the backward pass, weights apart."""
    own = {parameter.data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = (tensor.numel(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(count for count, _ in kept.values())


def test_with_checkpointing_a_block_keeps_its_input_alone():
    images = torch.rand(2, 3, 8, 8)

    def grown(checkpointing):
        counts = [
            saved(BottleneckResNet(**{**TINY, "depth": (blocks,)}, checkpointing=checkpointing), images)
            for blocks in (2, 5)
        ]
        return (counts[1] - counts[0]) / 3

    one = 2 * 16 * 8 * 8  # what goes into a block: 2 images, 4 · 4 channels, 8 × 8 positions
    assert grown(True) <= one < grown(False) / 2


def test_denoising_blocks_stand_at_the_end_of_each_stage_or_after_every_block():
    plain = BottleneckResNet(**TINY)
    last = BottleneckResNet(**TINY, denoising="mean")
    every = BottleneckResNet(**TINY, denoising="dot-product", denoise_all=True)
    kinds = [[type(block) for block in stage] for stage in last.stages]
    assert kinds == [[Bottleneck, Denoising], [Bottleneck, Bottleneck, Denoising]]
    assert [type(block) for block in every.stages[1]] == [Bottleneck, Denoising, Bottleneck, Denoising]
    assert not any(isinstance(module, Denoising) for module in plain.modules())


def test_denoising_blocks_start_as_the_papers_do_and_as_nothing():
    torch.manual_seed(0)
    model = BottleneckResNet(**{**TINY, "width": 32}, denoising="gaussian").eval()
    block = model.stages[1][-1]
    assert block.filtered.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)
    x = torch.rand(2, 256, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": 49}, "depth should be one of 50, 101"),
        ({"depth": True}, "depth should be one of 50, 101"),
        ({"depth": ()}, r"such as \[3, 4, 6, 3\], not \(\)"),
        ({"depth": (3, 0)}, r"not \(3, 0\)"),
        ({"depth": "50"}, "not '50'"),
        ({"width": 0}, "width should be a whole number"),
        ({"groups": 2.0}, "groups should be a whole number"),
        ({"width_per_group": -1}, "width_per_group should be a whole number"),
        ({"size": 0}, "size should be a whole number"),
        ({"stem": "mnist"}, "stem should be 'imagenet' or 'cifar', not 'mnist'"),
        ({"denoise_all": True}, "name their filter as denoising"),
        ({"denoising": "gausian", "depth": (1,)}, "did you mean 'gaussian'"),
    ],
    ids=str,
)
def test_settings_that_describe_no_network_are_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        BottleneckResNet(**settings)
