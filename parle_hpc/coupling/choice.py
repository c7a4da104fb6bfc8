"""Which kind of reference couples the replicas: the only place that knows all of them."""

from .compressed import CompressedReference
from .reference import MPIReference, SerialReference

PAYLOADS = ("full", "bfloat16")


def reference_over(comm, like, payload="full"):
    """The reference over `comm`, or the serial one where there is a single replica (comm None or of size 1)."""
    if comm is None or comm.Get_size() == 1:
        return SerialReference(like)
    return CompressedReference(comm, like) if payload == "bfloat16" else MPIReference(comm, like)
