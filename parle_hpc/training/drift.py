"""The ranks of a replica hold the same bits after every step; a faulty device, or another library, shows in them."""

from ..cluster.agreement import Agreement, Group, from_all
from ..cluster.fingerprint import bits
from ..errors import Disagreement, Drifted


def compare_weights(tensors, topology, hosts):
    """Compare what the ranks of each replica must hold alike. Collective over the replica.

    Raises Drifted, on all its ranks, where they are not the same; the line names the ranks in the minority.
    """
    if topology.m == 1:
        return
    mine = checksum(tensors)
    most, least = Group(topology.replica).max([mine, -mine])
    if most == -least:
        return
    everyone = from_all(topology.replica, (mine, topology.world.Get_rank()))
    values = [value for value, _ in everyone]
    usual = max(values, key=values.count)
    if 2 * values.count(usual) <= len(values):
        usual = None  # no majority: it can be any of them
    others = ", ".join(f"rank {rank} on {hosts[rank]}" for value, rank in everyone if value != usual)
    raise Drifted(
        f"the ranks of replica {topology.replica_index} do not hold the same weights any more, {others} having "
        "other ones than the rest: a faulty device, or libraries that differ"
    )


def compare_steps(least, most, round):
    """Raise Disagreement where the least and the most steps that a rank's optimiser had done after a round differ."""
    if least not in (most, Agreement.NOTHING):
        raise Disagreement(
            f"Session: the ranks do not agree: after round {round + 1} the number of steps of the optimiser is {least} "
            f"on one rank and {most} on another; every rank must call step() equally often"
        )


def checksum(tensors):
    """A number of 52 bits, which a float holds, that differs where a bit of the tensors does (but for rare chances)."""
    return float(int(bits(tensors)) % (1 << 52))
