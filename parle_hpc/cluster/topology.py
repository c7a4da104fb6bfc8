"""Ranks, replicas and their communicators, and Horovod on the replica's: the only importer of mpi4py and horovod.

    topology = Topology.split(replicas=3)         # 12 ranks: 3 replicas of 4 ranks

With m ranks in a replica, rank r belongs to replica r // m, at place r % m: neighbours share a replica, so that
gradients stay inside a node. mpi4py is imported in functions, because a loader process that is forked or spawned
must not start MPI.
"""

import math
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import torch

from ..errors import BadInput, say
from . import gpus
from .fingerprint import compare
from .gradients import GradientMean, some
from .leftovers import launched
from .lookout import Lookout, one_line
from .placement import divide
from .start import finalise, mpi_libraries, prepare_environment, start, threads_are_chosen
from .waiting import PATIENCE, be_patient, bounded, called, waits

T = TypeVar("T")
SHARES = "the other ranks' shares of x^a, at a coupling, in at_reference or state_dict"
LATE = (
    "another rank has not come to it, see its output; ranks that come later than that need more --run.patience, in a "
    "script Topology.split(patience=SECONDS)"
)
BUCKET = 1_000_000  # bytes of gradients that travel together where a replica spans nodes
REPLICA = "parle_hpc's replica"  # the name that MPI knows the communicator by


def load():
    """mpi4py's MPI and horovod.torch, loaded and not yet started.

    Raises BadInput where one of them is missing, or where they do not share one MPI library.
    """
    try:
        import mpi4py

        # an import that starts MPI holds the interpreter, so that no timer could end a start that hangs
        mpi4py.rc(initialize=False, finalize=True)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        advice = "load the MPI module with which it was installed, or see the README: python install/horovod.py"
        raise BadInput(f"mpi4py cannot be loaded ({error}); {advice}") from None
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise BadInput(f"Horovod cannot be loaded ({error}); build it: python install/horovod.py") from None
    if not hvd.mpi_built():
        raise BadInput("Horovod was built without MPI; build it again: python install/horovod.py")
    libraries = mpi_libraries()
    if len(libraries) > 1:
        raise BadInput(
            f"mpi4py and Horovod load different MPI libraries: {' and '.join(libraries)}; load the modules of one MPI "
            "alone and build both for it: python install/horovod.py builds Horovod and says how to build mpi4py"
        )
    return MPI, hvd


def mpi():
    """mpi4py's MPI, for its constants, once a Topology has started it."""
    from mpi4py import MPI

    return MPI


def world_ranks(comm):
    """World ranks of an mpi4py communicator's members, in its order; None for what is no MPI communicator."""
    if not hasattr(comm, "Get_group"):
        return None
    MPI = mpi()
    mine, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
    ranks = tuple(MPI.Group.Translate_ranks(mine, list(range(mine.Get_size())), world))
    mine.Free()
    world.Free()
    return ranks


class Topology:
    """The place of this rank among the replicas.

    Attributes:
        world, replica, cross: mpi4py communicators over all n m ranks, over the m ranks of this replica, and over the
            n ranks that hold the same place in their replicas.
        replica_index, place: this rank's replica, 0 to n - 1, and its place in it, 0 to m - 1.
        n, m: replicas, and ranks in each.
        local_rank, threads: rank on this node, and CPU threads that are this rank's share of the node's cores.
        seats: the gpus.Seat of each rank, in their order.
    """

    world: Any
    replica: Any
    cross: Any
    n: int
    m: int
    replica_index: int
    place: int
    local_rank: int
    threads: int
    seats: list[gpus.Seat]
    _last: ClassVar["Topology | None"] = None  # a process has one at a time, as it has one Horovod
    _lookout: Lookout | None = None
    _told = False  # what there is to say of GPUs

    @classmethod
    def split(cls, *, replicas: int, patience: float = PATIENCE) -> "Topology":
        """Start MPI, split the world into `replicas` groups, and start Horovod inside each.

        From then on hvd.rank() and hvd.size() are those of the replica. With several ranks an exception that nobody
        catches, and a rank that waits for one that will never come, end the job in seconds, with a traceback or a line.

        Args:
            replicas: n; the ranks must divide by it.
            patience: seconds after which a wait for another rank that has not come raises TimeoutError, and after
                which a start for which a rank has not come ends the job with one line.

        Collective over all ranks. Raises BadInput where the ranks do not divide, where mpi4py or Horovod is missing,
        where Horovod was started before, or where MPI and the launcher disagree about the ranks, or nothing of MPI
        stands behind what the environment says of them.
        """
        sys.excepthook = one_line
        here = launched(os.environ)
        m = divide(here.size, replicas)
        be_patient(patience)
        prepare_environment(os.environ, len(os.sched_getaffinity(0)), patience)
        with bounded(patience, "the start of MPI and Horovod", here.rank, LATE):
            return cls(here, replicas, m)

    def __init__(self, here, n, m):
        MPI, self._hvd = load()
        if Topology._last is not None:
            Topology._last._end()
        elif self._hvd.is_initialized():
            raise BadInput(
                "hvd.init() was called before Topology.split, which itself starts Horovod on each replica; leave it out"
            )
        Topology._last = self
        self.world = start(MPI, here)
        self.n, self.m = n, m
        self.replica_index, self.place = divmod(self.world.Get_rank(), m)
        self.replica = self.world.Split(self.replica_index, self.place)
        self.cross = self.world.Split(self.place, self.replica_index)
        self.replica.Set_name(REPLICA)
        self._start_horovod()
        self._check_groups()
        self._share_node(MPI)
        self._all = tuple(range(n * m))
        ranks = world_ranks(self.replica)
        self.gradient_bytes_sent = 0
        self._gradient_mean = GradientMean(
            self._begin_mean,
            self._hvd.synchronize,
            ranks,
            self.place,
            self.replica.allgather,
            on_host=self._gradients_on_host,
            least=BUCKET if len({self.seats[rank].node for rank in ranks}) > 1 else math.inf,
        )
        if n * m > 1:
            self._lookout = Lookout(self.world)
            sys.excepthook = self._lookout.failed

    def _begin_mean(self, tensor, name):
        # the least that any all-reduce sends
        self.gradient_bytes_sent += 2 * (self.m - 1) * tensor.nbytes // self.m
        return self._hvd.allreduce_async_(tensor, op=self._hvd.Average, name=name)

    def _start_horovod(self):
        if os.environ.get("HOROVOD_TIMELINE"):
            # every group's root would open the same file
            os.environ["HOROVOD_TIMELINE"] += f".replica{self.replica_index}"
        self._hvd.init(comm=self.replica)

    def _check_groups(self):
        """Each communicator holds whom it should, and Horovod reduces over the replica and nobody else."""
        rank = self.world.Get_rank()
        mine = range(self.replica_index * self.m, (self.replica_index + 1) * self.m)
        beside = range(self.place, self.n * self.m, self.m)
        total = self._hvd.allreduce(torch.tensor([rank]), op=self._hvd.Sum, name="self-test").item()
        right = (
            self.replica.allgather(rank) == list(mine)
            and self.cross.allgather(rank) == list(beside)
            and (self._hvd.rank(), self._hvd.size()) == (self.place, self.m)
            and total == sum(mine)
        )
        if not all(self.world.allgather(right)):
            raise BadInput("MPI and Horovod do not see the same groups of ranks; rebuild: python install/horovod.py")

    def _share_node(self, MPI):
        node = self.world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = node.Get_rank()
        rank = self.world.Get_rank()
        found = gpus.find(torch.cuda, self.local_rank, os.environ)
        mine = gpus.Seat(rank, socket.gethostname(), node.bcast(rank), bool(self._hvd.nccl_built()), *found)
        self.seats = self.world.allgather(mine)
        first = self.replica_index * self.m
        self._gradients_on_host = gpus.through_host(self.seats[first : first + self.m])
        cores = os.sched_getaffinity(0)
        everyone = node.allgather(cores)
        node.Free()
        # a core that k ranks may use counts as 1/k for each of them
        share = sum(1 / sum(core in others for others in everyone) for core in cores)
        self.threads = max(1, int(share + 1e-9))

    def device(self, choice: str) -> torch.device:
        """torch device of this rank: "cpu", "cuda", or with "auto" a GPU where there are some.

        It is the GPU local rank % GPUs of those that this rank sees. Rank 0 says so, once, where ranks share one.
        Raises BadInput, on all ranks, where "cuda" is asked for and there is none, or where some ranks alone see one.
        """
        if not threads_are_chosen(os.environ):
            torch.set_num_threads(self.threads)
        rank = self.world.Get_rank()
        number = gpus.device_of(self.seats[rank], self.seats, choice, os.environ)
        if number is None:
            return torch.device("cpu")
        if rank == 0 and not self._told and (line := gpus.slower(self.seats, self.m)):
            say(line)
        self._told = True
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        return device

    def close(self) -> None:
        """End Horovod and MPI on all ranks, so that each may leave by itself. Collective over all ranks."""
        self._end()
        finalise(mpi())

    def _end(self):
        if self._lookout is not None:
            self._lookout.close()
        self._hvd.shutdown()

    def together(self, function: Callable[..., T], *arguments: Any) -> T:
        """function(*arguments) on every rank; BadInput on all of them where it was raised on any.

        Collective over all ranks, so that a file missing on one node does not leave the others waiting.
        """
        result: Any = None
        error = None
        try:
            result = function(*arguments)
        except BadInput as raised:
            error = str(raised)
        with waits("the other ranks in Topology.together", called("calls of together", self._all)):
            errors = [e for e in self.world.allgather(error) if e is not None]
        if errors:
            raise BadInput(errors[0])
        return result

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """World rank 0's values into the tensors of every rank, bit for bit.

        Collective over all ranks. Raises ValueError where there are no tensors, and Disagreement where the ranks have
        others.
        """
        given = some(tensors, "broadcast")
        with waits("the other ranks in Topology.broadcast", called("calls of broadcast", self._all)):
            everyone = self.world.allgather((len(given), str([(t.shape, t.dtype) for t in given])))
            names = ("the number of tensors", "the shapes and types of the tensors")
            compare(names, everyone, self._all, "broadcast: the ranks do not agree", shown=names[:1])
            for tensor in given:
                host = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
                self.world.Bcast(host.reshape(-1).view(torch.uint8).numpy())
                tensor.detach().copy_(host)

    def follow_backward(self, params: Iterable[torch.nn.Parameter]) -> None:
        """Send gradients off during the backward pass that comes next, the last of a mini-batch, where that is faster.

        Where the replica spans nodes they travel in buckets of 1 MB, in one order, and `average_gradients` sends the
        rest; elsewhere this does nothing. Two runs give the same bits, which with 3 or more ranks are not those of one
        buffer. Called on every rank of the replica before its first mini-batch, or on none; nothing may change
        gradients between the backward pass and `average_gradients`, which raises RuntimeError where something has.
        """
        if self.m > 1:
            self._gradient_mean.follow(some(params, "follow_backward"))

    def average_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks of the replica, through Horovod.

        A gradient that a rank does not have counts as zero where another one has it, and stays None where none has.
        The gradients travel as one buffer, or in the buckets of `follow_backward`, in float32, or float64 where a
        parameter is, so that the order of sums does not depend on timing: two runs give the same bits, and so do the
        ranks of one replica. Collective over the replica, once a mini-batch on each of its ranks, also on one that has
        skipped its backward pass.

        Raises ValueError where there are no parameters, as in a generator that is used up; RuntimeError for a sparse
        gradient; Disagreement, on all ranks of the replica, where they do not hold the same weights, have other
        parameters, or have done other numbers of optimiser steps.
        """
        given = some(params, "average_gradients")
        if self.m > 1:
            self._gradient_mean(given)

    @property
    def gather(self) -> Callable[..., None] | None:
        """`gather_shares` where each rank has a GPU and NCCL, which is what Parle's `gather` wants; None elsewhere."""
        return None if self._gradients_on_host else self.gather_shares

    def gather_shares(self, whole: torch.Tensor, mine: slice) -> None:
        """Fill `whole`, shape (N,), of which a rank knows the slice `mine`, through Horovod.

        The slices of the replica's ranks, in their order, are the whole. Collective over the replica.
        """
        with waits(SHARES, called("calls that put shares together", self._gradient_mean.ranks)):
            whole.copy_(self._hvd.allgather(whole[mine], name="shares"))
