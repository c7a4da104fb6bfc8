"""Which kind of reference couples the replicas: the only place that knows all of them."""

from ..cluster.topology import REPLICA, world_ranks
from .compressed import CompressedReference
from .reference import MPIReference, SerialReference

PAYLOADS = ("full", "bfloat16")


def reference_over(comm, like, payload="full", terms=None):
    """The reference over `comm`, or the serial one where there is a single replica (comm None or of size 1).

    Raises ValueError where comm is that of a replica's ranks, between which nothing is coupled.
    """
    if comm is None or comm.Get_size() == 1:
        return SerialReference(like)
    return CompressedReference(comm, like, terms) if payload == "bfloat16" else MPIReference(comm, like, terms)


def refuse_other_communicators(comm, replica):
    """Raise ValueError where `comm` cannot be between replicas of which `replica`, or None, holds one's ranks."""
    if comm is None or comm.Get_size() == 1:
        return
    mine, between = world_ranks(replica), world_ranks(comm)
    if getattr(comm, "Get_name", str)() == REPLICA or (mine and between and len({*mine} & {*between}) > 1):
        raise ValueError(
            "comm must have one rank of each replica, and this communicator has several of one: take topology.cross, "
            "not topology.world or topology.replica"
        )
