"""What does BANG change in my own training loop? One line around it; here one network is trained both ways."""

from contextlib import nullcontext

import torch
from torch.nn.functional import cross_entropy

import bessemer as bs

digits = bs.data.load("digits")
images, labels = digits.test.at(slice(None))


def trained(balanced: bool) -> torch.nn.Module:
    """The same first weights and the same batches either way: only how much each sample counts differs."""
    torch.manual_seed(0)
    model = bs.models.DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = bs.data.Batches(digits.train, 64)
    with bs.balance(model, beta=1.0, epsilon=0.84) if balanced else nullcontext():
        for _ in range(200):
            batch = batches.next()
            optimizer.zero_grad()
            cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
    return model.eval()


for name, balanced in (("regular", False), ("BANG", True)):
    model = trained(balanced)
    logits = model(images).detach()
    right = logits.argmax(1) == labels
    top = logits.topk(2, dim=1).values
    lead = (top[:, 0] - top[:, 1])[right].median().item()
    adversarial = bs.attacks.HotCold()(model, images, labels)
    moved = 255 * bs.Linf(0.1).size(adversarial - images)[right].mean().item()
    print(
        f"{name}: {100 * right.float().mean():.1f} % right, the first logit leads by {lead:.0f} (median), "
        f"and hot/cold needs {moved:.0f} grey levels (mean of the largest move) to turn an image."
    )
