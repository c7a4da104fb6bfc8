"""The elastic reference x: the mean of the replicas, started when they stand still and collected when it is needed.

Between two couplings x^a does not move, so the reduction that (8d) needs can travel during the L inner steps. A
reference is used as

    reference.start(xa)        # x^a stands still from here on
    reference.poll()           # once a mini-batch: takes the next step, where there is one
    x = reference.collect()    # waits for what has not arrived
    reference.settle()         # before the end

`start`, `collect` and `exact` are collective over the replicas; `poll` is not. choice.py says which kind is taken.
"""

import time
from itertools import zip_longest
from typing import ClassVar

import torch

from ..cluster.topology import world_ranks
from ..cluster.waiting import called, wait_for
from ..equations import eq_8d
from .terms import Terms
from .transport import Staging, Travelling

EAGER = 60_000  # bytes of a message that Open MPI sends over TCP without asking: its limit is 64 KB
PIECE = 4 << 20  # elements that are summed together, which is what a reduction needs beside x^a


class SerialReference:
    """A single replica: the mean is the replica itself, copied because x^a moves on."""

    bytes_sent = 0
    wait_seconds = 0.0
    fresh = True
    news: ClassVar[dict[str, float]] = {}
    told = ()

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

    def release(self):
        pass

    def exact(self, xa, started):
        return xa

    def settle(self):
        pass


class MPIReference:
    """The mean over the n ranks of `comm`: each sums a part of 1/n, and hands it on to all, in pieces of x^a.

    MPI's own Iallreduce is not that fast everywhere (Open MPI's sums whole vectors along a tree where it is in place),
    and sums in an order that depends on the library and on sizes.

    Args:
        comm: an mpi4py communicator with one rank of each replica.
        apart: whether nothing else goes over `comm` while a mean is under way; else one like it is made for them.
        like: a flat tensor, shape (N,), whose type and device the mean has.
        terms: Terms, in which the ranks must agree.

    What asks for the mean raises TimeoutError where another replica does not answer within the patience of
    cluster.waiting, and Disagreement where the ranks do not agree.

    Attributes:
        bytes_sent: payload of this rank so far, in bytes: 2 (n - 1) / n times x^a a reduction, the least that any
            algorithm sends, and a few numbers.
        wait_seconds: time spent in `collect` so far.
        state: tensors by name that a later mean depends on.
        told: what the ranks of `comm` told beside the mean that came last, a list for each (Terms).
        fresh: whether `exact` gives the mean as it is now, also where one was started before.
    """

    fresh = False
    kind = "the mean of the replicas"
    news: ClassVar[dict[str, float]] = {}

    def __init__(self, comm, like, terms=None, apart=False):
        self.state = {}
        self.comm, self.n, self._apart = comm, comm.Get_size(), comm if apart else None
        self.terms = terms or Terms()
        self.bytes_sent, self.wait_seconds, self.told = 0, 0.0, ()
        self._staging, self._ranks = Staging(like.device), world_ranks(comm)
        self._prepare(like)
        self._travels = self._call = None

    def _prepare(self, like):
        """The mean, and behind it what makes its length divide by n."""
        whole = like.new_zeros(-(-like.numel() // self.n) * self.n)
        self.mean = whole[: like.numel()].copy_(like)
        self._host = self._staging.mirror(whole)
        size = min(len(whole), PIECE // self.n * self.n)
        self._parts = torch.empty(size, dtype=like.dtype)
        self._told = torch.empty(self.n * self.terms.width, dtype=like.dtype)

    def start(self, xa):
        """Start the reduction of xa, shape (N,), which on a device must not change before `collect`."""
        self.collect()  # a reduction that nobody wanted, as before a state is loaded
        self._staging.follow()
        self._call = called("means started", self._ranks)
        self._travels = Travelling(self._reduction(xa), self._call)

    def _reduction(self, xa):
        """The steps of a reduction; each yields what must be true before the next may be taken."""
        # the mean of the last round is not wanted any more once the next is on its way
        host, numbers = self._host, self.terms.numbers(self._host.dtype)
        self._staging.out(xa, host[: len(xa)])
        yield self._staging.idle
        yield from self.terms.greet(self.comm, self._ranks)
        if self._apart is None:
            # collectives follow one another, each when the last has ended: nobody else's may come between
            apart, made = self.comm.Idup()
            yield made.Test
            self._apart = apart
        self.bytes_sent += (self.n - 1) * (2 * host.nbytes // self.n + numbers.nbytes)
        rank = self._apart.Get_rank()
        for piece in host.split(len(self._parts)):
            parts, whole = self._parts[: len(piece)].view(self.n, -1), piece.view(self.n, -1)
            yield from exchanged(self._apart, whole, parts)
            whole[rank].copy_(tree_sum(list(parts)))
            yield from gathered(self._apart, whole)
        yield self._apart.Iallgather(numbers.numpy(), self._told.numpy()).Test
        self.told = self.terms.check(self._told, self._ranks)
        self._staging.back(host[: len(xa)], self.mean)
        with self._staging.beside():
            eq_8d([self.mean], self.n)

    def poll(self):
        if self._travels is not None:
            self._travels.over()

    def _arrive(self):
        if self._travels is None:
            return
        started = time.perf_counter()
        wait_for(self._travels.over, self.kind, call=self._call)
        self._travels = None
        self.wait_seconds += time.perf_counter() - started

    def collect(self):
        """The mean that was started last, shape (N,); the same tensor every time."""
        self._arrive()
        self._staging.join()
        return self.mean

    def release(self):
        """What was given to `start` may change from now on, after what the device has been given so far."""
        self._staging.join()

    def reset(self, xa):
        """Begin anew with xa, shape (N,), of which nothing has been told yet."""

    def exact(self, xa, started):
        """The mean of xa, shape (N,), in full, for which it waits; started: whether xa is what was started last."""
        if not started:
            self.start(xa)
        return self.collect()

    def settle(self):
        """Wait for what is under way, so that MPI may end."""
        self.collect()


def exchanged(comm, out, into):
    """The steps in which out[b] goes to rank b, and into[a] comes from rank a: n - 1 rounds of one partner each.

    At once, as MPI's own exchange has it, what several ranks send to one gets into each other's way there.
    """
    rank, n = comm.Get_rank(), comm.Get_size()
    into[rank].copy_(out[rank])
    for k in range(1, n):
        yield sent_and_received(comm, out[(rank + k) % n], (rank + k) % n, into[(rank - k) % n], (rank - k) % n)


def gathered(comm, rows):
    """The steps in which every rank gets each rank's row, in a ring: what comes from the one goes on to the next."""
    rank, n = comm.Get_rank(), comm.Get_size()
    for k in range(n - 1):
        mine, theirs = rows[(rank - k) % n], rows[(rank - k - 1) % n]
        yield sent_and_received(comm, mine, (rank + 1) % n, theirs, (rank - 1) % n)


def sent_and_received(comm, out, dest, into, source):
    """Send a tensor to one rank and receive one from another; what says whether both are over.

    Where two ranks send to each other it goes in messages for which MPI asks nobody first: the answer would often wait
    behind the other's data.
    """
    size = EAGER // out.element_size() if dest == source else len(out)
    requests = [comm.Irecv(part.numpy(), source) for part in into.split(size)]
    requests += [comm.Isend(part.numpy(), dest) for part in out.split(size)]
    return lambda: all(request.Test() for request in requests)


def tree_sum(vectors):
    """Their sum, a tensor of its own, in pairs of neighbours, then pairs of pairs: the error grows as log n."""
    if len(vectors) == 1:
        return vectors[0].clone()
    while len(vectors) > 1:
        vectors = [a if b is None else a + b for a, b in zip_longest(vectors[::2], vectors[1::2])]
    return vectors[0]
