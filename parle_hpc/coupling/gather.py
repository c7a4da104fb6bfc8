"""The shares of a replica's ranks, put together at a coupling."""

import torch

from ..cluster.topology import SHARES, mpi, world_ranks
from ..cluster.waiting import called, wait_for


class Gather:
    """The shares that the ranks of a replica hold, put together on all of them.

    Args:
        comm: mpi4py communicator over the ranks of the replica.
        shares: slices of the flat buffer, one for each rank, in order and without gaps.
        like: a flat tensor, shape (N,), of the type and on the device of what is gathered.
    """

    def __init__(self, comm, shares, like):
        self.comm, self.mine = comm, shares[comm.Get_rank()]
        self._ranks = world_ranks(comm)
        self.counts = [share.stop - share.start for share in shares]
        self._host = None
        if like.device.type != "cpu":
            self._host = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)

    def __call__(self, whole):
        """Fill `whole`, shape (N,), of which this rank's share is right. Collective over the replica.

        Raises TimeoutError where another rank does not answer within waiting.PATIENCE.
        """
        host = whole if self._host is None else self._host
        if host is not whole:
            host[self.mine].copy_(whole[self.mine])
        request = self.comm.Iallgatherv(mpi().IN_PLACE, [host.numpy(), self.counts])
        wait_for(request.Test, SHARES, call=called("calls that put shares together", self._ranks))
        if host is not whole:
            whole.copy_(host)
