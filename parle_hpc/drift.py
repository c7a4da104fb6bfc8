"""The ranks of a replica hold the same bits after every step; a faulty device, or another library, shows in them."""

import torch

from .evaluate import Group
from .failure import Drifted
from .flat import in_memory_order


def compare_weights(run):
    """Compare the weights of the ranks of each replica. Collective over the replica.

    Raises Drifted, on all its ranks, where they are not the same; the line names the ranks in the minority.
    """
    replica = run.topology.replica
    if run.topology.m == 1:
        return
    mine = checksum([run.optimizer.x] if run.settings.algorithm.inside == "workers" else run.params)
    most, least = Group(replica).max([mine, -mine])
    if most == -least:
        return
    everyone = replica.allgather((mine, run.rank))
    values = [value for value, _ in everyone]
    usual = max(values, key=values.count)
    if 2 * values.count(usual) <= len(values):
        usual = None  # no majority: it can be any of them
    others = ", ".join(f"rank {rank} on {run.hosts[rank]}" for value, rank in everyone if value != usual)
    raise Drifted(
        f"the ranks of replica {run.topology.replica_index} do not hold the same weights any more, {others} having "
        "other ones than the rest: a faulty device, or libraries that differ"
    )


def checksum(tensors):
    """A number of 52 bits, which a float holds, that differs where a bit of the tensors does (but for rare chances)."""
    total = sum(in_memory_order(t.detach()).view(torch.int32).sum(dtype=torch.int64) for t in tensors)
    return float(int(total) % (1 << 52))
