import torch
from torch.nn.functional import cross_entropy

from bessemer.data import Batches, load
from bessemer.models import DigitsNet


def test_learns_the_digits_in_a_few_hundred_steps():
    digits = load("digits")
    torch.manual_seed(0)
    model, batches = DigitsNet(), Batches(digits.train, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(300):
        batch = batches.next()
        optimizer.zero_grad()
        cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    images, labels = digits.test.at(slice(None))
    assert (model(images).argmax(1) == labels).float().mean() > 0.96
