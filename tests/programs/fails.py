"""Rank 1 fails while rank 0 waits for it, with a mean of the replicas under way on both."""

import torch

from parle_hpc import Topology
from parle_hpc.coupling.reference import MPIReference

topology = Topology.split(replicas=2)
xa = torch.zeros(4_000_000)
mean = MPIReference(topology.cross, xa)
mean.start(xa)
assert topology.world.Get_rank() == 0, "rank 1 fails"
topology.world.Barrier()
print("went on")
