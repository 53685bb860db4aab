"""Makes contrast.json: the contrastive loss of `trainer/model/src/beyond`, written plainly over pairs, by PyTorch."""

import torch
from make import hashed, write

TEMPERATURE = 0.2


def loss(one, two):
    both, n = torch.nn.functional.normalize(torch.cat([one, two]), dim=1), len(one)
    losses = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        scores = torch.stack([both[i] @ both[j] for j in others]) / TEMPERATURE
        losses.append(-torch.log_softmax(scores, 0)[others.index((i + n) % (2 * n))])
    return torch.stack(losses).mean()


if __name__ == "__main__":
    one, two = (hashed(name, (5, 7)).float() for name in ("one", "two"))
    found = loss(one.requires_grad_(), two)
    found.backward()
    write("contrast", {"loss": found.item(), "gradient": one.grad.flatten().tolist()})
