"""What holds for every network, and the registry."""

import copy

import pytest
import torch
from torch import nn

from bessemer import models
from bessemer.errors import ImagesError, UsageError
from bessemer.models import MODELS, LearnsStatistics
from bessemer.models.cost import cost

PARAMETERS = {
    "lenet": 431_080,
    "cifar-quick": 145_578,
    "digits-net": 53_002,
    "alexnet": 4_807_050,
    "resnet": 269_722,
    "small-cnn": 312_202,
    "preact-resnet": 11_172_170,
    "wide-resnet": 36_479_194,
    "bottleneck-resnet": 25_557_032,
}
# small ones of the large families, for what holds at every size
SMALL = {
    "preact-resnet": {"width": 4},
    "wide-resnet": {"depth": 10, "widen_factor": 1},
    "bottleneck-resnet": {"depth": (1, 1, 1, 1), "width": 4, "size": 40, "classes": 10},
}
SHAPES = {
    "lenet": (1, 28, 28),
    "cifar-quick": (3, 32, 32),
    "digits-net": (1, 8, 8),
    "alexnet": (3, 32, 32),
    "resnet": (3, 32, 32),
    "small-cnn": (1, 28, 28),
    "preact-resnet": (3, 32, 32),
    "wide-resnet": (3, 32, 32),
    "bottleneck-resnet": (3, 40, 40),
}

every_model = pytest.mark.parametrize("name", MODELS)


def build(name, **settings):
    """A small network of the family whose last layer is not zero, however it starts."""
    model = models.build(name, **{**SMALL.get(name, {}), **settings})
    *_, answer = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    nn.init.normal_(answer.weight, std=0.1)
    return model


def images_for(name, n=4):
    return torch.rand(n, *SHAPES[name], generator=torch.Generator().manual_seed(1))


@every_model
def test_has_the_published_number_of_parameters(name):
    assert cost(MODELS[name]).parameters == PARAMETERS[name]


@every_model
def test_says_which_images_it_takes(name):
    assert build(name).image_shape == SHAPES[name]


@every_model
@pytest.mark.parametrize("classes", [1, 10, 37])
def test_gives_one_logit_a_class(name, classes):
    assert build(name, classes=classes)(images_for(name)).shape == (4, classes)


@every_model
def test_an_empty_batch_gives_no_logits(name):
    assert build(name).eval()(images_for(name, 0)).shape == (0, 10)


@every_model
def test_the_same_seed_draws_the_same_weights(name):
    torch.manual_seed(3)
    first = build(name)
    torch.manual_seed(3)
    second = build(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@every_model
def test_channels_last_changes_nothing_but_rounding(name):
    model, images = build(name).double().eval(), images_for(name).double()
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(turned(images.contiguous(memory_format=torch.channels_last)), model(images))


@every_model
def test_every_parameter_gets_a_gradient(name):
    model = build(name)
    model(images_for(name)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_model
def test_can_be_traced_in_one_graph(name):
    model, images = build(name).eval(), images_for(name)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


@every_model
def test_dropout_acts_in_training_alone_and_can_be_switched_off(name):
    images = images_for(name)
    with_dropout, without = build(name, dropout=0.5), build(name, dropout=0.0)
    assert not torch.equal(with_dropout(images), with_dropout(images))
    assert torch.equal(without(images), without(images))
    with_dropout.eval()
    assert torch.equal(with_dropout(images), with_dropout(images))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("small-cnn", "wide-resnet")])
def test_dropout_sits_just_before_the_last_layer(name):
    model, seen = build(name, dropout=0.5), []
    model.dropout.register_forward_hook(lambda layer, given, result: seen.append((given[0], result)))
    *_, answer = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    answer.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    model(images_for(name))
    (given, dropped), last = seen
    assert given.shape == (4, answer.in_features)
    assert answer.out_features == model.classes
    assert last is dropped


@every_model
@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (28, 28), (1, 28, 28), (4, 3, 224, 224), (4, 784)], ids=str)
def test_images_of_another_shape_are_refused(name, shape):
    channels, height, width = SHAPES[name]
    with pytest.raises(ImagesError) as refusal:
        build(name)(torch.zeros(shape))
    assert f"takes (N, {channels}, {height}, {width})" in str(refusal.value)
    assert f"not {shape}" in str(refusal.value)


@every_model
def test_grey_levels_are_refused(name):
    with pytest.raises(ImagesError, match="uint8"):
        build(name)(torch.zeros(4, *SHAPES[name], dtype=torch.uint8))


def test_an_unknown_name_gets_the_nearest_right_one():
    with pytest.raises(UsageError, match="model: 'lenett' is not known; did you mean 'lenet'"):
        models.build("lenett")


def test_an_unknown_setting_gets_the_nearest_right_one():
    with pytest.raises(UsageError, match="'drop_out' is not known; did you mean 'dropout'"):
        models.build("lenet", drop_out=0.5)


@pytest.mark.parametrize("settings", [{"classes": 0}, {"classes": 2.5}, {"dropout": 1.0}, {"dropout": -0.1}], ids=str)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        models.build("lenet", **settings)


def test_networks_for_colour_images_learn_statistics():
    learning = [name for name in MODELS if isinstance(build(name), LearnsStatistics)]
    assert learning == [name for name, (channels, _, _) in SHAPES.items() if channels == 3]
