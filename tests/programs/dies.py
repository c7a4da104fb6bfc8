"""Rank 1 is killed while a reduction of the replicas is under way; rank 0 must not wait for ever."""

import os
import signal

import torch

from parle_hpc import Parle, Topology

topology = Topology.split(replicas=2)
y = torch.nn.Parameter(torch.zeros(1000))
optimizer = Parle([y], lr=0.1, L=2, batches_per_epoch=10, comm=topology.cross)
for step in range(1000):
    y.grad = torch.ones(1000)
    optimizer.step()
    if step == 7 and topology.world.Get_rank() == 1:
        print("rank 1 leaves", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
print("rank", topology.world.Get_rank(), "went on")
