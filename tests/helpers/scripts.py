"""Small optimisers and loops as scripts of users have them."""

import torch

from parle_hpc import ElasticSGD, EntropySGD, Parle

L = 4
MAKE = {
    "parle": lambda p, **o: Parle(p, lr=0.1, L=L, batches_per_epoch=5, **o),
    "entropy_sgd": lambda p, **o: EntropySGD(p, lr=0.1, L=L, batches_per_epoch=5, **o),
    "elastic_sgd": lambda p, **o: ElasticSGD(p, lr=0.1, batches_per_epoch=5, **o),
}


def weight(value=1.0, size=6, **options):
    return torch.nn.Parameter(torch.full((size,), value, **options))


def run(optimizer, params, steps, after=lambda: None, gradient=0.1):
    for _ in range(steps):
        for p in params:
            p.grad = torch.full_like(p, gradient) if p.requires_grad else None
        optimizer.step()
        after()


def reference(optimizer, params):
    with optimizer.at_reference():
        return torch.cat([p.detach().flatten() for p in params])
