"""A run of Parle that ends in the middle of a round, while the mean of the replicas is under way."""

import torch

from parle_hpc import Parle, Topology

torch.set_num_threads(1)
topology = Topology.split(replicas=2)
weight = torch.nn.Parameter(torch.randn(8_000_000))
optimizer = Parle([weight], lr=0.1, L=4, batches_per_epoch=10, comm=topology.cross)
weight.grad = torch.zeros_like(weight)
for _ in range(10):
    optimizer.step()
print("ended", flush=True)
