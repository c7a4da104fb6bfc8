"""What ranks tell each other beside gradients and weights; the watchdog knows of every wait in it."""

import numpy as np

from .fingerprint import bits, compare
from .topology import mpi, world_ranks
from .waiting import called, wait_for, waits


def from_first(comm, value):
    """The value of rank 0 of `comm`, on every rank. Collective over it."""
    with waits():
        return comm.bcast(value)


def on_first(topology, function, *arguments):
    """function(*arguments) on world rank 0, None elsewhere; its BadInput on every rank. Collective over all ranks."""
    if topology.world.Get_rank():
        function, arguments = lambda: None, ()
    return topology.together(function, *arguments)


def by_first(topology, function, *arguments):
    """What function(*arguments) gives on world rank 0, on every rank; its BadInput too. Collective over all ranks."""
    return from_first(topology.world, on_first(topology, function, *arguments))


def from_all(comm, value):
    """The values of all ranks of `comm`, in their order, on every rank. Collective over it."""
    with waits("what the other ranks tell", called("exchanges", world_ranks(comm))):
        return comm.allgather(value)


def compare_replica(comm, params):
    """Raise Disagreement where the ranks of a replica, those of `comm`, have trained apart. Collective over it."""
    rows = from_all(comm, [int(bits(params))])
    where = "a round in which average_gradients was not called: the ranks of a replica do not agree"
    compare(("the weights",), rows, world_ranks(comm), where)


class Group:
    """The ranks among which an evaluation is divided: sums over an mpi4py communicator, or over this process alone."""

    def __init__(self, comm=None):
        self._comm = comm
        self.rank = comm.Get_rank() if comm is not None else 0
        self.size = comm.Get_size() if comm is not None else 1
        self._ranks = world_ranks(comm)

    def sum(self, values):
        """Sum of float64 values over the ranks, elementwise."""
        return self._reduce(values, "SUM")

    def max(self, values):
        """Maximum of float64 values over the ranks, elementwise."""
        return self._reduce(values, "MAX")

    def compare(self, names, values, where):
        """Raise Disagreement where a rank's `values`, the numbers that `names` stand for, are not those of all."""
        rows = np.zeros((self.size, len(names)))
        rows[self.rank] = values
        compare(names, self.sum(rows.ravel()).reshape(rows.shape).tolist(), self._ranks, where, shown=names)

    def _reduce(self, values, op):
        mine = np.array(values, np.float64)
        if self.size == 1:
            return mine
        result = np.empty_like(mine)
        request = self._comm.Iallreduce(mine, result, op=getattr(mpi(), op))
        call = called("sums in a validation", self._ranks)
        wait_for(request.Test, "the other ranks in batchnorm_of_reference, or in a validation", call=call)
        return result


class Agreement:
    """The smallest of the ranks' numbers of a round, known to all of them one round later without waiting for them.

    Every rank calls `exchange` once a round, and so all learn in the same round that one of them is in trouble, or is
    asked to end.

    Args:
        comm: mpi4py communicator.
        size: how many numbers there are.
    """

    NOTHING = 1 << 62

    def __init__(self, comm, size):
        self._comm = comm
        self._mine, self._least = np.empty(size, np.int64), np.full(size, self.NOTHING, np.int64)
        self._request = None

    def exchange(self, *values):
        """Hand in this round's numbers; the least of each of the last round's, NOTHING in the first."""
        least = self.finish()
        self._mine[:] = values
        self._request = self._comm.Iallreduce(self._mine, self._least, op=mpi().MIN)
        return least

    def finish(self):
        """The least of each of the numbers handed in last."""
        if self._request is not None:
            wait_for(self._request.Test, "the other ranks' end of round")
            self._request = None
        return self._least.tolist()
