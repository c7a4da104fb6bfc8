"""The elastic reference x: the mean of the replicas, started when they stand still and collected when it is needed.

Between two couplings x^a does not move, so the reduction that (8d) needs can travel during the L inner steps. A
reference is used as

    reference.start(xa)        # x^a stands still from here on
    reference.poll()           # as often as is convenient: MPI moves only while somebody calls it
    x = reference.collect()    # waits for what has not arrived

`start` and `collect` are collective over the replicas; `poll` is not.
"""

import torch

from .equations import eq_8d
from .failure import wait_for


class SerialReference:
    """A single replica: the mean is the replica itself, copied because x^a moves on."""

    bytes_sent = 0
    wait_seconds = 0.0

    def __init__(self, like):
        self.mean = like.clone()

    def start(self, xa):
        self.mean.copy_(xa)

    def poll(self):
        pass

    def collect(self):
        return self.mean


class MPIReference:
    """The mean over the n ranks of `comm`, by a non-blocking all-reduce.

    Args:
        comm: an mpi4py communicator with one rank of each replica.
        like: a flat tensor, shape (N,), whose type and device the mean has.

    `collect` raises TimeoutError where another replica does not answer within failure.TIMEOUT.

    Attributes:
        bytes_sent: payload of this rank so far, 2 (n - 1) / n * N * itemsize a reduction, the least that any
            algorithm sends.
        wait_seconds: time spent in `collect` so far.
    """

    def __init__(self, comm, like):
        self.comm, self.n = comm, comm.Get_size()
        self.mean = like.clone()
        self.bytes_sent, self.wait_seconds = 0, 0.0
        self._request = None
        # MPI gets host memory: device pointers need a CUDA-aware MPI
        pinned = {"pin_memory": True} if like.is_cuda else {}
        self._receive = torch.empty(like.shape, dtype=like.dtype, **pinned) if like.is_cuda else self.mean
        self._send = torch.empty(like.shape, dtype=like.dtype, **pinned) if like.is_cuda else None

    def start(self, xa):
        """Start the reduction of xa, shape (N,), which must not change before `collect`."""
        self.collect()  # a reduction that nobody wanted, as before a state is loaded
        if self._send is not None:
            xa = self._send.copy_(xa)
        self._request = self.comm.Iallreduce(xa.numpy(), self._receive.numpy())
        self.bytes_sent += 2 * (self.n - 1) * xa.nbytes // self.n

    def poll(self):
        if self._request is not None:
            self._request.Test()

    def collect(self):
        """The mean that was started last, shape (N,); the same tensor every time."""
        if self._request is not None:
            self.wait_seconds += wait_for(self._request, "the mean of the replicas")
            self._request = None
            eq_8d([self._receive], self.n)
            if self._receive is not self.mean:
                self.mean.copy_(self._receive)
        return self.mean


class Gather:
    """The shares that the ranks of a replica hold, put together on all of them.

    Args:
        comm: mpi4py communicator over the ranks of the replica.
        shares: slices of the flat buffer, one for each rank, in order and without gaps.
        like: a flat tensor, shape (N,), of the type and on the device of what is gathered.
    """

    def __init__(self, comm, shares, like):
        self.comm, self.mine = comm, shares[comm.Get_rank()]
        self.counts = [share.stop - share.start for share in shares]
        self._host = torch.empty(like.shape, dtype=like.dtype, pin_memory=True) if like.is_cuda else None

    def __call__(self, whole):
        """Fill `whole`, shape (N,), of which this rank's share is right. Collective over the replica.

        Raises TimeoutError where another rank does not answer within failure.TIMEOUT.
        """
        from mpi4py import MPI

        host = whole if self._host is None else self._host
        if host is not whole:
            host[self.mine].copy_(whole[self.mine])
        request = self.comm.Iallgatherv(MPI.IN_PLACE, [host.numpy(), self.counts])
        wait_for(request, "the other ranks' shares of the replica")
        if host is not whole:
            whole.copy_(host)


def reference_over(comm, like):
    """The reference over `comm`, or the serial one where there is a single replica (comm None or of size 1)."""
    return SerialReference(like) if comm is None or comm.Get_size() == 1 else MPIReference(comm, like)
