"""A mean that nobody asks for until it is there, between two ranks. Prints "arrived"."""

import time

import torch

from parle_hpc import Topology
from parle_hpc.coupling.reference import MPIReference

topology = Topology.split(replicas=2)
xa = torch.full((4_000_000,), float(topology.world.Get_rank()))
mean = MPIReference(topology.cross, xa)
mean.start(xa)
travelling, end = mean._travels, time.monotonic() + 60
while travelling._due is not None and time.monotonic() < end:
    time.sleep(0.05)
assert travelling._due is None, "still under way"
assert (mean.collect() == 0.5).all()
topology.world.Barrier()
if topology.world.Get_rank() == 0:
    print("arrived")
