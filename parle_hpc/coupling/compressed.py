"""The mean of the replicas with half the payload."""

import torch

from ..cluster.topology import world_ranks
from ..cluster.waiting import called, wait_for, waits
from ..equations import eq_8d
from .reference import MPIReference, exchanged, gathered
from .terms import Terms


class CompressedReference(MPIReference):
    """The mean of the replicas with half the payload, in bfloat16, and error feedback.

    Everyone knows h^a, what replica a has told so far, and so only the mean of what is new has to travel:

        q^a = bfloat16(x^a - h^a)            h^a = h^a + q^a
        s   = bfloat16(1/n sum_a q^a + e)    e   = 1/n sum_a q^a + e - s          x = x + s

    What rounding loses stays in x^a - h^a and in e, and is sent in a later round: where the replicas stand still, x
    becomes their mean. Every rank sums and rounds, and keeps e of, a part of 1/n.

    `start` changes nothing of `state`; `collect` does, once for each `start`.
    """

    fresh = True
    kind = "the mean of the replicas in bfloat16"

    def __init__(self, comm, like, terms=None):
        ranks = world_ranks(comm)
        what, call = (
            "the other replicas' Parle(payload='bfloat16')",
            called("optimisers made with payload bfloat16", ranks),
        )
        for done in (terms or Terms()).greet(comm, ranks):
            wait_for(done, what, call=call)
        # two collectives follow one another, the second when the first has ended: nobody else's may come between
        with waits(what, call):
            own = comm.Dup()
        super().__init__(own, like, terms, apart=True)

    def _prepare(self, like):
        self.mean = like.clone()
        part = -(-like.numel() // self.n)
        # a rank's numbers follow its part of s, in two halves each
        width = part + 2 * self.terms.width
        self.h, self.e = torch.zeros_like(like), like.new_zeros(part)
        self._q = like.new_zeros(self.n * part, dtype=torch.bfloat16)
        self._r, self._s = self._q.new_empty(self.n * width), self._q.new_empty(width)
        self._sum = torch.empty_like(self.e)
        self._send, self._receive, self._send_s = map(self._staging.mirror, (self._q, self._r, self._s))
        self.state = {"payload_mean": self.mean, "payload_h": self.h, "payload_e": self.e}
        self._arrived = False

    def reset(self, xa):
        """Begin with the exact mean of xa, shape (N,)."""
        self.mean.copy_(self.exact(xa))
        self.h.copy_(xa)
        self.e.zero_()

    def exact(self, xa, started=False):
        """The mean of xa, shape (N,), in full and in a tensor of its own; it waits for the network."""
        self._arrive()
        reference = MPIReference(self.comm, xa, self.terms, apart=True)
        mean = reference.exact(xa, started=False)
        self.bytes_sent += reference.bytes_sent
        self.wait_seconds += reference.wait_seconds
        return mean

    def _reduction(self, xa):
        part = self.e.numel()
        numbers = self.terms.numbers(torch.float32).view(torch.bfloat16)
        with self._staging.beside():
            self._q[: xa.numel()] = xa - self.h
        self._staging.out(self._q, self._send)
        yield self._staging.idle
        arrive = self._receive[: self.n * part]
        yield from exchanged(self.comm, self._rows(self._send), self._rows(arrive))
        self._staging.back(arrive, self._r[: self.n * part])
        with self._staging.beside():
            self._sum.copy_(self._r[: self.n * part].view(self.n, -1).to(self._sum.dtype).sum(0))
            eq_8d([self._sum], self.n)
            self._s[:part] = self._sum.add_(self.e)
        self._staging.out(self._s, self._send_s)
        yield self._staging.idle
        self._send_s[part:] = numbers
        self.bytes_sent += (self.n - 1) * (self._send[:part].nbytes + self._send_s.nbytes)
        rows = self._rows(self._receive)
        rows[self.comm.Get_rank()].copy_(self._send_s.view(torch.int16))
        yield from gathered(self.comm, rows)
        told = self._receive.view(self.n, -1)[:, part:].contiguous().view(torch.float32)
        self.told = self.terms.check(told, self._ranks)
        self._staging.back(self._receive, self._r)
        self._arrived = True

    def _rows(self, tensor):
        """A bfloat16 tensor as NumPy and MPI know it, 16 bits a number, in the same memory, a row for each rank."""
        return tensor.view(torch.int16).view(self.n, -1)

    def collect(self):
        self._arrive()
        if self._arrived:
            self._arrived = False
            with self._staging.beside():
                self.h += self._q[: self.h.numel()]
                told = self._r.view(self.n, -1)[:, : self.e.numel()].reshape(-1)
                self.mean += told[: self.mean.numel()]
                torch.sub(self._sum, self._s[: self.e.numel()], out=self.e)
        return super().collect()
