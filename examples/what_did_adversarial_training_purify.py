"""What did adversarial training do to the neurons of my model? Two checkpoints of it, compared weight by weight."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bessemer as bs

digits = bs.data.load("digits")
threat = bs.Linf(0.1)


def network() -> nn.Module:
    """Any module with convolutions or linear layers will do."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10)
    )


def trained(model: nn.Module, steps: int, attack: bs.attacks.PGD | None = None) -> nn.Module:
    """The model after so many updates, on clean images or on those that an attack makes of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches = bs.data.Batches(digits.train, 64)
    for step in range(steps):
        batch = batches.next()
        images = attack(model.eval(), batch.images, batch.labels, seed=step) if attack else batch.images
        optimizer.zero_grad()
        cross_entropy(model.train()(images), batch.labels).backward()
        optimizer.step()
    return model.eval()


torch.manual_seed(0)
initial = network()
clean = trained(copy.deepcopy(initial), 300)
independent = trained(network(), 300)  # other initial weights: what two networks share by chance
# purification is a question about training that goes on from the clean weights
robust = trained(copy.deepcopy(clean), 150, bs.attacks.PGD(threat, steps=5))

found = bs.purify(clean, robust, initial, independent, robust_start=clean)
page = bs.report([found], "purified.html")

for row in found.summary():
    print(
        f"{row['layer']}: theta(initial, clean) {row['initial_clean']:.2f}, theta(clean, robust) "
        f"{row['clean_robust']:.2f}, between independent networks {row['independent']:.2f} (medians)"
    )
share = found.outweighs().value
print(f"{share:.0%} of the neurons kept more of their clean weight than was removed. The page is {page}.")
