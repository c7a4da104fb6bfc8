"""Which kind of reference couples the replicas: the only place that knows all of them."""

from ..cluster.topology import REPLICA, world_ranks
from .compressed import CompressedReference
from .posting import MailboxReference
from .reference import MPIReference, SerialReference

PAYLOADS = ("full", "bfloat16")


def reference_over(comm, like, payload="full", terms=None, mailbox=None, apart=False):
    """The reference over `comm`, or the serial one where there is a single replica (comm None or of size 1).

    mailbox: what MailboxReference takes, where the replicas are jobs of their own. apart: as of MPIReference.
    """
    if mailbox is not None:
        return MailboxReference(*mailbox)
    if comm is None or comm.Get_size() == 1:
        return SerialReference(like)
    return CompressedReference(comm, like, terms) if payload == "bfloat16" else MPIReference(comm, like, terms, apart)


def between_replicas(comm, replica=None):
    """`comm`, or None where it couples nothing.

    Raises ValueError where it cannot be between replicas of which `replica`, where it is given, holds one's ranks.
    """
    if comm is None or comm.Get_size() == 1:
        return None
    mine, between = world_ranks(replica), world_ranks(comm)
    if getattr(comm, "Get_name", str)() == REPLICA or (mine and between and len({*mine} & {*between}) > 1):
        raise ValueError(
            "comm must have one rank of each replica, and this communicator has several of one: take topology.cross, "
            "not topology.world or topology.replica"
        )
    return comm
