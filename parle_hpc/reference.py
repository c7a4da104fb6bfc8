"""The elastic reference x: the mean of the replicas, started when they stand still and collected when it is needed.

Between two couplings x^a does not move, so the reduction that (8d) needs can travel during the L inner steps. A
reference is used as

    reference.start(xa)        # x^a stands still from here on
    reference.poll()           # once a mini-batch: takes the next step, where there is one
    x = reference.collect()    # waits for what has not arrived

`start` and `collect` are collective over the replicas; `poll` is not.
"""

import atexit
import os
import threading
import time
from contextlib import nullcontext, suppress

import torch

from .equations import eq_8d
from .failure import PATIENCE, say, wait_for

PAYLOADS = ("full", "bfloat16")
INTERVAL = 0.003  # seconds between two looks at a request that travels


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


class Staging:
    """Copies between a device and the host memory that MPI reads and writes: device pointers need a CUDA-aware MPI.

    They run on a stream of their own, through pinned memory, so that neither direction holds up the training stream.
    On a CPU the tensors are that memory, and nothing is copied.
    """

    def __init__(self, device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mirror(self, tensor):
        """Host memory of the shape and type of a tensor; the tensor itself on a CPU."""
        return tensor if self._stream is None else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def beside(self):
        """Context in which work goes to the side stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self):
        """The side stream waits for all that the training stream was given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def out(self, tensor, mirror):
        """Start to bring a tensor to the host; what MPI may read once `idle` is true."""
        if self._stream is None:
            return tensor
        with self.beside():
            return mirror.copy_(tensor, non_blocking=True)

    def back(self, mirror, tensor):
        """Start to bring to the device what MPI wrote."""
        if self._stream is not None:
            with self.beside():
                tensor.copy_(mirror, non_blocking=True)

    def idle(self):
        """Whether everything that was started is over."""
        return self._stream is None or self._stream.query()

    def join(self):
        """The training stream waits, on the device, for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class Travelling:
    """A request of MPI that moves by itself.

    MPI moves a non-blocking collective only while somebody calls it, each time by what fits into the buffers of a
    connection; a mini-batch is too long to wait for the next call. So a thread calls it until it is complete. The
    MPI must have been started with MPI_THREAD_MULTIPLE, as mpi4py does.
    """

    def __init__(self, request):
        self._request, self._lock, self._over = request, threading.Lock(), False
        if not self.over():
            threading.Thread(target=self._move, name="travelling", daemon=True).start()

    def over(self):
        """Whether the request is complete."""
        with self._lock:
            # no call once it is complete: MPI may have ended
            self._over = self._over or self._request.Test()
            return self._over

    def _move(self):
        # what goes wrong is raised where the training asks as well
        with suppress(Exception):
            while not self.over():
                time.sleep(INTERVAL)


@atexit.register
def _arrive_before_the_end():
    """The memory that MPI writes to goes with the interpreter, and no thread may be in a call of MPI when it ends."""
    for thread in threading.enumerate():
        if thread.name == "travelling":
            thread.join(PATIENCE)
            if thread.is_alive():
                say(f"a mean of the replicas did not arrive within {PATIENCE:.0f} s of the end; another rank is dead")
                os._exit(1)


class MPIReference:
    """The mean over the n ranks of `comm`, by a non-blocking all-reduce.

    Args:
        comm: an mpi4py communicator with one rank of each replica.
        like: a flat tensor, shape (N,), whose type and device the mean has.

    `collect` raises TimeoutError where another replica does not answer within failure.PATIENCE.

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
        self._steps = self._due = None

    def start(self, xa):
        """Start the reduction of xa, shape (N,), which must not change before `collect`."""
        self.collect()  # a reduction that nobody wanted, as before a state is loaded
        self._staging.follow()
        self._steps = self._reduction(xa)
        self._due = next(self._steps)
        self.poll()

    def _reduction(self, xa):
        """The steps of a reduction; each yields what must be true before the next may be taken."""
        send = self._staging.out(xa, self._send)
        yield self._staging.idle
        self.bytes_sent += 2 * (self.n - 1) * send.nbytes // self.n
        yield Travelling(self.comm.Iallreduce(send.numpy(), self._receive.numpy())).over
        self._staging.back(self._receive, self.mean)
        with self._staging.beside():
            eq_8d([self.mean], self.n)

    def poll(self):
        while self._due is not None and self._due():
            self._due = next(self._steps, None)

    def _arrive(self):
        started = time.perf_counter()
        while self._due is not None:
            wait_for(self._due, "the mean of the replicas")
            self._due = next(self._steps, None)
        self.wait_seconds += time.perf_counter() - started

    def collect(self):
        """The mean that was started last, shape (N,); the same tensor every time."""
        self._arrive()
        self._staging.join()
        return self.mean


class CompressedReference(MPIReference):
    """The mean of the replicas with half the payload, in bfloat16, and error feedback.

    Everyone knows h^a, what replica a has told so far, and so only the mean of what is new has to travel:

        q^a = bfloat16(x^a - h^a)            h^a = h^a + q^a
        s   = bfloat16(1/n sum_a q^a + e)    e   = 1/n sum_a q^a + e - s          x = x + s

    What rounding loses stays in x^a - h^a and in e, and is sent in a later round: where the replicas stand still, x
    becomes their mean. Every rank sums and rounds, and keeps e of, a part of 1/n.

    `start` changes nothing of `state`; `collect` does, once for each `start`.
    """

    def __init__(self, comm, like):
        # two collectives follow one another, the second when the first has ended: nobody else's may come between
        super().__init__(comm.Dup(), like)
        part = -(-like.numel() // self.n)
        self.h, self.e = torch.zeros_like(like), like.new_zeros(part)
        self._q = like.new_zeros(self.n * part, dtype=torch.bfloat16)
        self._r, self._s, self._sum = torch.empty_like(self._q), self._q.new_empty(part), torch.empty_like(self.e)
        self._send, self._receive, self._send_s = map(self._staging.mirror, (self._q, self._r, self._s))
        self.state = {"payload_mean": self.mean, "payload_h": self.h, "payload_e": self.e}
        self._arrived = False

    def reset(self, xa):
        """Begin with the exact mean of xa, shape (N,)."""
        self.mean.copy_(self.exact(xa))
        self.h.copy_(xa)
        self.e.zero_()

    def exact(self, xa):
        """The mean of xa, shape (N,), in full and in a tensor of its own; it waits for the network."""
        self._arrive()
        reference = MPIReference(self.comm, xa)
        reference.start(xa)
        mean = reference.collect()
        self.bytes_sent += reference.bytes_sent
        self.wait_seconds += reference.wait_seconds
        return mean

    def _reduction(self, xa):
        with self._staging.beside():
            self._q[: xa.numel()] = xa - self.h
        send = self._staging.out(self._q, self._send)
        yield self._staging.idle
        yield Travelling(self.comm.Ialltoall(numbers(send), numbers(self._receive))).over
        self._staging.back(self._receive, self._r)
        with self._staging.beside():
            self._sum.copy_(self._r.view(self.n, -1).to(self._sum.dtype).sum(0))
            eq_8d([self._sum], self.n)
            self._s.copy_(self._sum.add_(self.e))
        send = self._staging.out(self._s, self._send_s)
        yield self._staging.idle
        self.bytes_sent += 2 * (self.n - 1) * send.nbytes
        yield Travelling(self.comm.Iallgather(numbers(send), numbers(self._receive))).over
        self._staging.back(self._receive, self._r)
        self._arrived = True

    def collect(self):
        self._arrive()
        if self._arrived:
            self._arrived = False
            with self._staging.beside():
                self.h += self._q[: self.h.numel()]
                self.mean += self._r[: self.mean.numel()]
                torch.sub(self._sum, self._s, out=self.e)
        return super().collect()


def numbers(tensor):
    """A bfloat16 tensor as NumPy and MPI know it, 16 bits a number, in the same memory."""
    return tensor.view(torch.int16).numpy()


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

        Raises TimeoutError where another rank does not answer within failure.PATIENCE.
        """
        from mpi4py import MPI

        host = whole if self._host is None else self._host
        if host is not whole:
            host[self.mine].copy_(whole[self.mine])
        request = self.comm.Iallgatherv(MPI.IN_PLACE, [host.numpy(), self.counts])
        wait_for(request.Test, "the other ranks' shares of the replica")
        if host is not whole:
            whole.copy_(host)


def reference_over(comm, like, payload="full"):
    """The reference over `comm`, or the serial one where there is a single replica (comm None or of size 1)."""
    if comm is None or comm.Get_size() == 1:
        return SerialReference(like)
    return CompressedReference(comm, like) if payload == "bfloat16" else MPIReference(comm, like)
