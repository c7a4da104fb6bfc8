"""Runs of Parle that are given up, or end, in the middle of a round, while the mean of the replicas is under way."""

import torch

from parle_hpc import Parle, Topology

torch.set_num_threads(1)
topology = Topology.split(replicas=2)
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(4_000_000))
weight.grad = torch.zeros_like(weight)
for payload in ("full", "bfloat16", "bfloat16"):
    optimizer = Parle([weight], lr=0.1, L=4, batches_per_epoch=10, comm=topology.cross, payload=payload)
    # of two ranks, one may see that a step has arrived and take the next, and the other one not
    for _ in range(10 + topology.replica_index):
        if optimizer.steps < 10:
            optimizer.step()
        else:
            optimizer._mean.poll()
print("ended", flush=True)
