import torch
from torch.nn.functional import cross_entropy, softplus

from bessemer.purification.sparse_coding.network import SymmetricReLU


def planted(dim=7, pairs=11):
    generator = torch.Generator().manual_seed(0)
    network = SymmetricReLU(dim, pairs, 0.5).double()
    with torch.no_grad():
        network.weight.copy_(torch.randn(pairs, dim, generator=generator))
        network.biases.copy_(torch.rand(pairs, generator=generator))
    return network, torch.randn(20, dim, generator=generator, dtype=torch.float64)


def test_it_is_the_formula():
    network, inputs = planted()
    network.eval()
    for sample, found in zip(inputs, network.score(inputs), strict=True):
        expected = 0.0
        for weight, bias in zip(network.weight.tolist(), network.biases.tolist(), strict=True):
            before = sum(w * x for w, x in zip(weight, sample.tolist(), strict=True))
            expected += max(before - bias, 0) - max(-before - bias, 0)
        assert abs(found.item() - expected) < 1e-12


def test_it_is_odd_and_its_cross_entropy_is_the_logistic_loss():
    network, inputs = planted()
    network.eval()
    assert torch.allclose(network.score(-inputs), -network.score(inputs))
    labels = torch.arange(20) % 2
    signs = 2 * labels - 1
    logistic = softplus(-signs * network.score(inputs)).mean()
    assert torch.allclose(cross_entropy(network(inputs), labels), logistic)


def test_smoothing_is_a_noise_of_the_threshold_in_training_alone():
    network, inputs = planted()
    network.eval()
    exact = network.score(inputs)
    assert torch.equal(exact, network.score(inputs))
    network.train()
    torch.manual_seed(0)
    draws = torch.stack([network.score(inputs) for _ in range(4000)])
    # E ReLU(t + sigma n) = t Phi(t / sigma) + sigma phi(t / sigma)
    normal = torch.distributions.Normal(0.0, 1.0)
    sigma = network.smoothing * network.biases
    before = inputs @ network.weight.T

    def smooth(t):
        return t * normal.cdf(t / sigma) + sigma * normal.log_prob(t / sigma).exp()

    expected = (smooth(before - network.biases) - smooth(-before - network.biases)).sum(1)
    assert (draws.mean(0) - expected).abs().max() < 5 * draws.std(0).max() / 4000**0.5
    network.smoothing = 0.0
    assert torch.equal(network.score(inputs), exact)


def test_a_twin_is_its_own():
    network, inputs = planted()
    twin = network.twin().eval()
    network.eval()
    with torch.no_grad():
        before = network.score(inputs)
        network.weight.zero_()
    assert torch.equal(twin.score(inputs), before)
