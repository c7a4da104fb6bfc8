"""The elastic reference x: the mean of the replicas, started when they stand still and collected when it is needed.

Between two couplings x^a does not move, so the reduction that (8d) needs can travel during the L inner steps. A
reference is used as

    reference.start(xa)        # x^a stands still from here on
    reference.poll()           # once a mini-batch: takes the next step, where there is one
    x = reference.collect()    # waits for what has not arrived

`start`, `collect` and `exact` are collective over the replicas; `poll` is not. choice.py says which kind is taken.
"""

import time

from ..cluster.waiting import wait_for
from ..equations import eq_8d
from .transport import Staging, Travelling


class SerialReference:
    """A single replica: the mean is the replica itself, copied because x^a moves on."""

    bytes_sent = 0
    wait_seconds = 0.0

    def __init__(self, like):
        self.mean = like.clone()
        self.state = {}

    def start(self, xa):
        self.mean.copy_(xa)

    def poll(self):
        pass

    def collect(self):
        return self.mean

    def reset(self, xa):
        pass

    def exact(self, xa, started):
        return xa


class MPIReference:
    """The mean over the n ranks of `comm`, by a non-blocking all-reduce.

    Args:
        comm: an mpi4py communicator with one rank of each replica.
        like: a flat tensor, shape (N,), whose type and device the mean has.

    `collect` raises TimeoutError where another replica does not answer within waiting.PATIENCE.

    Attributes:
        bytes_sent: payload of this rank so far, 2 (n - 1) / n * N * itemsize a reduction, the least that any
            algorithm sends.
        wait_seconds: time spent in `collect` so far.
        state: tensors by name that a later mean depends on.
    """

    def __init__(self, comm, like):
        self.state = {}
        self.comm, self.n = comm, comm.Get_size()
        self.mean = like.clone()
        self.bytes_sent, self.wait_seconds = 0, 0.0
        self._staging = Staging(like.device)
        self._send, self._receive = self._staging.mirror(like), self._staging.mirror(self.mean)
        self._travels = None

    def start(self, xa):
        """Start the reduction of xa, shape (N,), which must not change before `collect`."""
        self.collect()  # a reduction that nobody wanted, as before a state is loaded
        self._staging.follow()
        self._travels = Travelling(self._reduction(xa))

    def _reduction(self, xa):
        """The steps of a reduction; each yields what must be true before the next may be taken."""
        send = self._staging.out(xa, self._send)
        yield self._staging.idle
        self.bytes_sent += 2 * (self.n - 1) * send.nbytes // self.n
        yield self.comm.Iallreduce(send.numpy(), self._receive.numpy()).Test
        self._staging.back(self._receive, self.mean)
        with self._staging.beside():
            eq_8d([self.mean], self.n)

    def poll(self):
        if self._travels is not None:
            self._travels.over()

    def _arrive(self):
        if self._travels is None:
            return
        started = time.perf_counter()
        wait_for(self._travels.over, "the mean of the replicas")
        self._travels = None
        self.wait_seconds += time.perf_counter() - started

    def collect(self):
        """The mean that was started last, shape (N,); the same tensor every time."""
        self._arrive()
        self._staging.join()
        return self.mean

    def reset(self, xa):
        """Begin anew with xa, shape (N,), of which nothing has been told yet."""

    def exact(self, xa, started):
        """The mean of xa, shape (N,), in full, for which it waits; started: whether xa is what was started last."""
        if not started:
            self.start(xa)
        return self.collect()
