"""The reference by way of a mailbox: a thread leaves x^a there, and reads the others', while the mini-batches go on."""

import threading
import time
from contextlib import suppress

import torch

from ..cluster.agreement import from_first
from ..cluster.topology import SHARES, world_ranks
from ..cluster.waiting import called, wait_for
from ..errors import say
from .others import Others

LOOK = 0.25  # seconds between two looks at what others have left
EXACT = 0.02  # the same where a round waits for them
SETTLE = 60.0  # seconds that the end of a run may wait for what is being written
AGAIN = 5.0  # seconds after which what could not be written is tried again


class Membership:
    """How a replica takes part in a mailbox.

    Args:
        member: Member, on the first rank of the replica, which deals with the folder; None on the others.
        replica: mpi4py communicator over the replica's ranks; None where it has one.
        max_age, max_seconds, wait_for: as of Others.
        weight: of this member's x^a in the mean.
        saved: function giving the couplings in the last complete checkpoint.
    """

    def __init__(self, member, replica=None, *, max_age=20, max_seconds=3600.0, wait_for=None, weight=1.0, saved=int):
        self.member, self.replica, self.wait_for, self.weight, self.saved = member, replica, wait_for, weight, saved
        self._ages = {"max_age": max_age, "max_seconds": max_seconds}
        self._clerk, self._entered = None, False

    def clerk(self, like):
        """The Clerk, for an x^a of the shape (N,) and type of `like`; None on the other ranks of the replica."""
        if self.member is not None:
            m = self.member
            others = Others(m.folder, m.number, like.cpu().numpy(), wait_for=self.wait_for, say=say, **self._ages)
            self._clerk = Clerk(self, others)
            if self._entered:
                self._clerk.start()
        return self._clerk

    def __enter__(self):
        """From now on x^a is left for the others; what a set-up hands in may not be yet what the run begins with."""
        self._entered = True
        if self._clerk is not None:
            self._clerk.start()
        return self

    def __exit__(self, kind, error, trace):
        """Leave it; without an error all rounds are done."""
        if self._clerk is not None:
            self._clerk.close()
        if self.member is not None:
            self.member.close(done=kind is None)


class Clerk:
    """The thread that deals with the folder.

    Args:
        membership: Membership of this rank, the first of its replica.
        others: Others.

    Attributes:
        bytes: that it has left there.
    """

    def __init__(self, membership, others):
        self._membership, self._others = membership, others
        self._exact = membership.wait_for is not None
        self._letter = self._newest = self._error = None
        self._busy, self._over, self._failed = False, False, False
        self.bytes = 0
        self._handed_in = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mailbox", daemon=True)

    def start(self):
        """Deal with what is handed in."""
        self._thread.start()

    def hand_in(self, round, x):
        """Leave a copy of x^a after `round` couplings, shape (N,), for the others."""
        letter = (round, x.detach().to("cpu", copy=True))
        with self._handed_in:
            self._letter, self._busy = letter, True
            self._handed_in.notify()

    def newest(self):
        """(Its number, the last Mean); None where there is none yet. Raises what went wrong."""
        if self._error is not None:
            raise self._error
        return self._newest

    def settle(self):
        """Wait until what was handed in last is left, or cannot be."""
        with suppress(TimeoutError):
            wait_for(lambda: not self._busy or not self._thread.is_alive(), "the mailbox", SETTLE)

    def close(self):
        """End, settled."""
        self.settle()
        self._over = True
        if self._thread.is_alive():
            self._thread.join(SETTLE)

    def _work(self):
        current, due = None, float("inf")
        while not self._over:
            with self._handed_in:
                self._handed_in.wait_for(lambda: self._letter is not None, EXACT if self._exact else LOOK)
                new, self._letter = self._letter, None
            if new is not None:
                current, due = new, 0.0
            if current is None:
                continue
            try:
                if time.monotonic() >= due:
                    due = float("inf") if self._post(*current) else time.monotonic() + AGAIN
                self._look(*current, new is not None)
            except Exception as error:  # raised where the training asks
                self._error = error
                return

    def _post(self, round, x):
        m = self._membership
        keep_from = self._others.oldest_wanted() if self._exact else round
        try:
            self.bytes += m.member.post(round, x.numpy(), m.saved(), keep_from)
        except OSError as error:
            if not self._failed:
                say(
                    f"{m.member.folder} cannot be written ({error.strerror}): the others have an older x^a of this "
                    "member until it can"
                )
            self._failed = True
        else:
            self._failed = False
        with self._handed_in:
            self._busy = self._letter is not None
        return not self._failed

    def _look(self, round, x, is_new):
        number, last = self._newest or (0, None)
        if self._exact and last is not None and last.round == round:
            return
        if self._others.look(round) or is_new:
            mean = self._others.mean(x, self._membership.weight, round)
            if mean is not None:
                self._newest = (number + 1, mean)


class MailboxReference:
    """The mean of this member's x^a and of the newest of the others that count, (8d) with stale values.

    Its own x^a counts as it is now. Where members wait for one another it is the mean over MPI, to the bit. Used like
    MPIReference; `collect` is collective over the replica.

    Args:
        membership: Membership.
        whole: x^a, a flat tensor of shape (N,), which is read at the beginning of a round.
        shares: slices of it, one for each rank of the replica, of which `start` is given this rank's; None: `start` is
            given all on each.
        place: function giving (couplings done, mini-batches since the last one), of the x^a that stands still.

    Attributes:
        news: of the last mean, {"members": how many count, this one too; "age": of the others' values, in rounds}.
    """

    fresh = False

    def __init__(self, membership, whole, shares, place):
        self._membership, self._whole, self._place = membership, whole, place
        replica = membership.replica
        self._comm = None if replica is None or replica.Get_size() == 1 else replica
        self._shares = None if self._comm is None else shares
        mine = slice(None) if self._shares is None else shares[replica.Get_rank()]
        self._clerk = membership.clerk(whole)
        self.mean = whole[mine].clone()
        # what the mean is beside the part of it that this member's x^a is
        self._rest, self._version = torch.zeros_like(self.mean), 0
        self._own, self._part = self.mean, 1.0
        self.state, self.wait_seconds, self.news = {}, 0.0, {}

    @property
    def bytes_sent(self):
        """Bytes that this rank has left in the mailbox."""
        return 0 if self._clerk is None else self._clerk.bytes

    def start(self, xa):
        """x^a, of which xa is this rank's share, stands still until `collect`."""
        self._own = xa
        round, within = self._place()
        if within == 0 and self._clerk is not None:
            self._clerk.hand_in(round, self._whole)

    def poll(self):
        pass

    def release(self):
        pass

    def reset(self, xa):
        pass

    def collect(self):
        """The mean, with x^a as `start` was given it, of that one's shape; the same tensor every time.

        Raises TimeoutError where a member that it waits for does not come within the patience of cluster.waiting.
        """
        started = time.perf_counter()
        number, mean = self._newest()
        told = (number, mean and mean.part, mean and mean.ages)
        if self._comm is not None:
            told = from_first(self._comm, told)
        if told[0] != self._version:
            self._version, self._part, ages = told
            self._receive(mean)
            self.news = {"members": 1 + len(ages), "age": sum(ages) / max(1, len(ages))}
        if self._part:
            torch.add(self._rest, self._own, alpha=self._part, out=self.mean)
        else:
            self.mean.copy_(self._rest)
        self.wait_seconds += time.perf_counter() - started
        return self.mean

    def _newest(self):
        """(Its number, the Mean) on the first rank of the replica, (0, None) elsewhere and before the first."""
        if self._clerk is None:
            return 0, None
        round, n = self._place()[0], self._membership.wait_for
        if n is not None:
            wait_for(
                lambda: self._is_of(round), f"x^a of the members 0 to {n - 1} after {round} rounds, in the mailbox"
            )
        return self._clerk.newest() or (0, None)

    def _is_of(self, round):
        found = self._clerk.newest()
        return found is not None and found[1].round == round

    def _receive(self, mean):
        if self._comm is None:
            self._rest.copy_(mean.rest)
            return
        host = torch.empty(self._rest.shape, dtype=self._rest.dtype)
        whole = None if mean is None else mean.rest.numpy()
        if self._shares is None:
            if whole is not None:
                host = mean.rest
            request = self._comm.Ibcast(host.numpy())
        else:
            counts = [share.stop - share.start for share in self._shares]
            request = self._comm.Iscatterv(None if whole is None else [whole, counts], host.numpy())
        wait_for(request.Test, SHARES, call=called("calls that hand out the mean", world_ranks(self._comm)))
        self._rest.copy_(host)

    def exact(self, xa, started):
        """As `collect`; where xa is not what `start` was given last, with that."""
        if not started:
            self.start(xa)
        return self.collect()

    def settle(self):
        """Wait for what is on its way to the others."""
        if self._clerk is not None:
            self._clerk.settle()
