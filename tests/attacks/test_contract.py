"""The contract of every attack. A new attack is one row in `EVERY`; the sentences below then hold for it too."""

import copy

import pytest
import torch
from torch import nn

from bessemer.attacks import (
    APGD,
    BIM,
    BPDA,
    DDN,
    EOT,
    FAB,
    FGSM,
    FGV,
    MIFGSM,
    PGD,
    RFGSM,
    SPSA,
    CarliniWagner,
    DeepFool,
    EightBit,
    FGSLine,
    GaussianNoise,
    GradientAttack,
    HopSkipJump,
    HotCold,
    Spatial,
    Square,
    Transfer,
    UniformNoise,
    Within,
    Worst,
    parts,
)
from bessemer.errors import BessemerError, ImagesError, LabelsError, ModelError
from bessemer.threat import L1, L2, Linf


class Small(nn.Module):
    """A convolution, batch norm, dropout and a counter: all that an attack could disturb."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6 * 36, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).flatten(1)))


def network():
    torch.manual_seed(0)
    model = Small()
    model(torch.rand(64, 1, 8, 8))  # running statistics that mean something
    return model


def grey(images):
    return (images * 255).round() / 255


SURROGATE = network().eval()  # a twin of the model: what fools one fools the other
BOUNDED = [
    FGSM(Linf(0.1)),
    FGSM(L2(0.5)),
    FGSM(L1(2.0)),
    RFGSM(Linf(0.3)),
    RFGSM(L2(2.0)),
    BIM(Linf(0.1)),
    BIM(L2(0.5)),
    MIFGSM(Linf(0.1)),
    MIFGSM(L2(0.5)),
    PGD(Linf(0.1), steps=7),
    PGD(L2(0.5), steps=7),
    PGD(L1(2.0), steps=7),
    PGD(Linf(0.1), steps=5, restarts=3),
    PGD(Linf(0.1), steps=5, loss="margin"),
    PGD(Linf(0.1), steps=5, loss="dlr"),
    PGD(Linf(0.1), steps=5, random_start=False),
    GradientAttack(Linf(0.1), 7, aim=parts.RandomClass(), step_size=parts.AtLeast(0.02)),
    GradientAttack(Linf(0.1), 7, "dlr", aim=parts.Likely(2), start=parts.Natural(), step_size=parts.Cosine()),
    GradientAttack(L2(0.5), 7, projection=parts.GreyLevels(), stop=parts.OnceConfident(0.1), restarts=2),
    APGD(Linf(0.1), steps=8),
    APGD(L2(0.5), steps=8, loss="dlr", restarts=2),
    APGD(L1(2.0), steps=12),
    APGD(Linf(0.1), steps=6, loss="dlr", targets=3),
    APGD(L1(2.0), steps=20, loss="margin", targets=2),
    Within(Linf(0.1), FAB(steps=10)),
    Within(L2(0.5), FAB("L2", steps=10, targets=3)),
    Within(L1(2.0), FAB("L1", steps=10)),
    Within(Linf(0.1), FGSLine()),
    Within(L2(1.0), HotCold()),
    Square(Linf(0.1), queries=60),
    Square(L2(0.5), queries=200),
    Square(L1(2.0), queries=200),
    Square(Linf(0.1), queries=30, restarts=2, loss="dlr"),
    SPSA(Linf(0.1), steps=8, samples=16, learning_rate=0.02),
    SPSA(L2(0.5), steps=8, samples=16, learning_rate=0.03),
    EOT(PGD(Linf(0.1), steps=4), samples=2),
    EOT(PGD(L2(0.5), steps=4), samples=3),
    EightBit(PGD(Linf(0.1), steps=7)),
    EightBit(PGD(L2(0.5), steps=7)),
    EightBit(PGD(L1(2.0), steps=7)),
    Worst((PGD(Linf(0.1), steps=4), FGSM(Linf(0.1)))),
    Worst((PGD(L2(0.5), steps=4), EightBit(FGSM(L2(0.5))))),
    Transfer(PGD(Linf(0.1), steps=4), SURROGATE),
    BPDA(PGD(Linf(0.1), steps=4), grey, SURROGATE),
    EOT(Worst((EightBit(PGD(Linf(0.1), steps=4)), FGSM(Linf(0.1)))), samples=2),
]
# those that return whole grey levels
ROUNDED = [
    FGSLine(),
    FGSLine(loss="margin"),
    FGV(),
    FGV(loss="margin"),
    DDN(steps=40, levels=256),
    HotCold(),
    HotCold(rank=2),
    HotCold(sign=True),
    HotCold(overshoot=1.05),
    Worst((FGSLine(), HotCold())),
    EOT(HotCold(), samples=2),
    Transfer(FGSLine(), SURROGATE),
    BPDA(FGSLine(), grey, SURROGATE),
]
MINIMAL = [
    *ROUNDED,
    DeepFool("L2"),
    DeepFool("Linf"),
    DDN(steps=20),
    CarliniWagner(steps=60, binary_steps=3, learning_rate=0.05, initial_constant=1.0),
    FAB(steps=10),
    FAB("L2", steps=10, targets=3),
    FAB("L1", steps=10, restarts=2),
    FAB("L2", steps=10, enough=0.5),
    HopSkipJump(steps=5),
    HopSkipJump("Linf", steps=5),
]
RANDOM = [
    GaussianNoise(0.2),
    GaussianNoise(0.2, draws=4),
    UniformNoise(Linf(0.2)),
    UniformNoise(L2(0.5), draws=4),
]
EVERY = [*BOUNDED, *MINIMAL, *RANDOM, Spatial(30, 1, 3, 3)]
# those that reach the optimum of a linear model: one step of the steepest direction, or many
OPTIMAL = [
    FGSM(Linf(0.1)),
    FGSM(L2(0.4)),
    FGSM(L1(0.4)),
    BIM(Linf(0.1)),
    BIM(L2(0.4)),
    MIFGSM(Linf(0.1)),
    PGD(Linf(0.1), steps=7),
    PGD(Linf(0.1), steps=5, restarts=3),
    PGD(Linf(0.1), steps=5, loss="margin"),
    PGD(L2(0.4), steps=30, step_size=0.2),
    PGD(L1(0.4), steps=20),
    APGD(Linf(0.1), steps=20),
    APGD(L2(0.4), steps=30),
    APGD(L1(0.4), steps=50),
]


@pytest.fixture
def model():
    return network()


@pytest.fixture
def batch(model):
    generator = torch.Generator().manual_seed(3)
    images = (torch.rand(12, 1, 8, 8, generator=generator) * 255).round() / 255
    model.eval()
    with torch.no_grad():
        labels = model(images).argmax(1)
    model.train()
    return images, labels


def accuracy(model, images, labels):
    was = model.training
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    model.train(was)
    return right


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_returns_images_of_the_same_kind_that_are_still_images(attack, model, batch):
    images, labels = batch
    before = images.clone()
    found = attack(model, images, labels)
    assert (found.shape, found.dtype, found.device) == (images.shape, images.dtype, images.device)
    assert not found.requires_grad
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(images, before), "the attack wrote into the caller's images"


@pytest.mark.parametrize("attack", BOUNDED, ids=repr)
@pytest.mark.parametrize("until_success", [False, True])
def test_stays_in_the_ball(attack, until_success, model, batch):
    found = attack.run(model, *batch, until_success=until_success).images
    assert attack.threat.size(found - batch[0]).max() <= attack.threat.eps + 1e-6
    assert attack.threat.size(found - batch[0]).max() > 0


@pytest.mark.parametrize("attack", ROUNDED, ids=repr)
def test_attacks_of_the_papers_on_8_bit_images_return_whole_grey_levels(attack, model, batch):
    found = attack(model, *batch)
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_no_image_takes_more_passes_than_announced(attack, model, batch):
    outcome = attack.run(model, *batch, until_success=True)
    forwards, backwards = attack.passes(4)
    assert outcome.forwards.max() <= forwards
    assert outcome.backwards.max() <= backwards
    assert outcome.forwards.min() >= 1


@pytest.mark.parametrize("attack", MINIMAL, ids=repr)
def test_minimal_attacks_return_what_fools_or_the_original(attack, model, batch):
    images, labels = batch
    found = attack(model, images, labels)
    model.eval()
    fooled = model(found).argmax(1) != labels
    assert fooled.any()
    assert torch.equal(found[~fooled], images[~fooled])


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_repeats_with_its_seed(attack, model, batch):
    assert torch.equal(attack(model, *batch, seed=5), attack(model, *batch, seed=5))


@pytest.mark.parametrize("attack", [PGD(Linf(0.1), steps=1), PGD(L2(0.5), steps=1), *RANDOM], ids=repr)
def test_another_seed_draws_something_else(attack, model, batch):
    assert not torch.equal(attack(model, *batch, seed=5), attack(model, *batch, seed=6))


@pytest.mark.parametrize("attack", EVERY, ids=repr)
@pytest.mark.parametrize("fails", [False, True])
def test_gives_the_model_back_as_it_was(attack, fails, model, batch):
    images, labels = batch
    model.conv.weight.requires_grad_(False)
    model.norm.eval()
    model(images).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(LabelsError):
            attack(model, images, labels + 4)
    else:
        attack(model, images, labels)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)


def test_gives_back_what_batch_norm_has_learned_from_a_model_that_stays_in_training_mode(model, batch):
    class Stubborn(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def train(self, mode=True):
            return self

        def forward(self, images):
            return self.model(images)

    images, labels = batch
    stubborn = Stubborn(model.train())
    # a graph of the caller's has saved the running statistics
    model.norm.eval()
    loss = model(images).sum()
    model.norm.train()
    state = {name: tensor.clone() for name, tensor in stubborn.state_dict().items()}
    PGD(Linf(0.1), steps=3)(stubborn, images, labels)
    assert all(torch.equal(tensor, state[name]) for name, tensor in stubborn.state_dict().items())
    loss.backward()
    stubborn(images)
    assert not torch.equal(model.norm.running_mean, state["model.norm.running_mean"])


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_splitting_a_batch_changes_no_verdict(attack, model, batch):
    images, labels = batch
    whole = attack(model, images, labels, seed=2)
    parts = [
        attack(model, images[cut], labels[cut], seed=2, index=torch.arange(12)[cut])
        for cut in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    model.eval()
    assert torch.equal(model(whole).argmax(1), model(torch.cat(parts)).argmax(1))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2.5 / 255)


@pytest.mark.parametrize("attack", [attack for attack in BOUNDED if attack != FGSM(L1(2.0))], ids=repr)
def test_beats_noise_of_the_same_size(attack, model, batch):
    images, labels = batch
    noisy = attack.threat.sample(images, 0, torch.arange(12))
    assert accuracy(model, attack(model, images, labels), labels) < accuracy(model, noisy, labels)


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_leaving_early_reaches_the_same_verdicts(attack, model, batch):
    images, labels = batch
    stayed, left = (attack.run(model, images, labels, until_success=early) for early in (False, True))
    model.eval()
    assert torch.equal(model(stayed.images).argmax(1) == labels, model(left.images).argmax(1) == labels)
    assert left.forwards.sum() <= stayed.forwards.sum()


@pytest.mark.parametrize("attack", OPTIMAL, ids=repr)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_finds_the_known_optimum_of_a_linear_model(attack, count):
    """The worst move inside a ball is known: eps times the steepest direction, against the weights."""
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    images = torch.full((count, 4), 0.5)
    found = attack(lambda x: torch.cat([x @ weight.T, -x @ weight.T], 1), images, torch.zeros(count).long())
    dual = {"Linf": weight.abs().sum(), "L2": weight.norm(), "L1": weight.abs().max()}[attack.threat.norm]
    gain = ((images - found) @ weight.T)[:, 0]
    torch.testing.assert_close(gain, (attack.threat.eps * dual).expand(count), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(Linf(0.3)),
        PGD(Linf(0.3), steps=10),
        APGD(Linf(0.3), steps=10),
        Square(Linf(0.3), queries=60),
        FGSLine(),
        FGV(),
        HotCold(),
        DDN(steps=40),
        CarliniWagner(steps=60, binary_steps=3, learning_rate=0.05, initial_constant=1.0),
        FAB(steps=10),
    ],
    ids=repr,
)
def test_reaches_a_target(attack, model, batch):
    images, labels = batch
    target = (labels + 1) % 4
    model.eval()
    before = (model(images).argmax(1) == target).sum()
    after = (model(attack(model, images, labels, target=target)).argmax(1) == target).sum()
    assert after > before


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_an_empty_batch_comes_back_empty(attack, model):
    assert attack(model, torch.zeros(0, 1, 8, 8), torch.zeros(0).long()).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_works_where_gradients_are_switched_off(attack, model, batch):
    expected = attack(model, *batch)
    with torch.no_grad():
        assert torch.equal(attack(model, *batch), expected)
    with torch.inference_mode():
        images, labels = batch[0] * 1, batch[1]
        assert torch.equal(attack(model, images, labels), expected)


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_bad_input_is_refused_in_a_sentence(attack, model, batch):
    images, labels = batch
    with pytest.raises(ImagesError, match=r"run from -1\.\d+ to .*Normalize"):
        attack(model, images * 4 - 1.8, labels)
    with pytest.raises(ImagesError, match="NaN.*normalisation"):
        attack(model, images * float("nan"), labels)
    with pytest.raises(ImagesError, match="divide grey levels by 255"):
        attack(model, (images * 255).byte(), labels)
    with pytest.raises(LabelsError, match="0 … 3"):
        attack(model, images, labels + 2)
    with pytest.raises(LabelsError, match="12 images need 12 labels"):
        attack(model, images, labels[:5])
    with pytest.raises(LabelsError, match="whole numbers"):
        attack(model, images, labels.float())


def test_logits_of_one_image_that_look_like_probabilities_are_logits(batch):
    """Attacks of a random class ask about the first image alone how many classes there are."""
    images, labels = batch
    share = torch.linspace(0.4, 3, len(images))

    def model(x):
        return torch.stack([share[: len(x)], 0.6 * torch.ones(len(x))], 1) + 0 * x.flatten(1).sum(1, keepdim=True)

    attack = GradientAttack(Linf(0.1), 3, aim=parts.RandomClass())
    assert attack(model, images, labels % 2).shape == images.shape


@pytest.mark.parametrize("attack", [FGSM(Linf(0.1)), FGSLine(), HotCold()], ids=repr)
def test_models_that_do_not_return_logits_are_refused(attack, batch):
    images, labels = batch
    with pytest.raises(ModelError, match="probabilities"):
        attack(lambda x: x.flatten(1)[:, :4].softmax(1), images, labels)
    with pytest.raises(ModelError, match="tuple"):
        attack(lambda x: (x.flatten(1), None), images, labels)
    with pytest.raises(ModelError, match="one number per image"):
        attack(lambda x: x.flatten(1)[:, :1], images, torch.zeros(12).long())
    with pytest.raises(ModelError, match="shape"):
        attack(lambda x: x, images, labels)
    with pytest.raises(ModelError, match="NaN"):
        attack(lambda x: x.flatten(1)[:, :4].sub(2).log(), images, labels)


def test_attacks_are_values():
    assert PGD(Linf(8 / 255), steps=40) == PGD(Linf(8 / 255), steps=40)
    assert repr(PGD(Linf(8 / 255)).threat) == "Linf(8/255)"
    assert copy.deepcopy(HotCold(rank=3)) == HotCold(rank=3)
    assert len({FGSM(L2(1.0)), FGSM(L2(1.0)), FGSM(L2(2.0))}) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PGD(Linf(0.1), steps=0),
        lambda: PGD(Linf(0.1), restarts=0),
        lambda: PGD(Linf(0.1), step_size=-1.0),
        lambda: PGD(Linf(0.1), loss="hinge"),
        lambda: FGSLine(loss="hinge"),
        lambda: HotCold(rank=0),
        lambda: GaussianNoise(-0.1),
        lambda: APGD(Linf(0.1), steps=0),
        lambda: APGD(Linf(0.1), restarts=0),
        lambda: APGD(Linf(0.1), targets=-1),
        lambda: APGD(Linf(0.1), rho=float("nan")),
        lambda: APGD(Linf(0.1), loss="hinge"),
        lambda: RFGSM(Linf(0.1), share=1.5),
        lambda: MIFGSM(Linf(0.1), decay=-1.0),
        lambda: Within(Linf(0.1), PGD(Linf(0.1))),
        lambda: Worst((PGD(Linf(0.1)), PGD(Linf(0.2)))),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(BessemerError):
        wrong()
