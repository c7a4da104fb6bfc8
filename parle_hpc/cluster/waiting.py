"""Every wait for other ranks has a bound, and ends the job with one line that names who is stuck."""

import os
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from ..errors import SAVED, say
from .leftovers import all_end_with_one, is_left_over
from .placement import placement

PATIENCE = 600.0  # seconds to wait for other ranks before the job is ended
START_UP = 120.0  # seconds that a run has at least to start MPI and Horovod, and to read what its first round needs
GOODBYE = 30.0  # seconds for the end of MPI, after which a saved run ends all the same
OTHERS_WAIT = 15.0  # seconds in which rank 0 gets its line out before the others leave


def leave(error, status, speaks=None):
    """End this process with `status` and one line from the rank that `speaks`: rank 0, as the launcher counts.

    A launcher ends the whole job when the first rank leaves; so the others give that one time to speak. Those who are
    still there then are heard too, where that means that it did not: rank 0 has nothing to complain of, or is none.

    Args:
        error: the line, or the exception that says it; of BadInput `speaks` says which rank.
    """
    sys.stdout.flush()
    here = placement(os.environ)
    speaks = getattr(error, "speaks", None) if speaks is None else speaks
    speaks = here.rank == 0 if speaks is None else speaks
    if not speaks:
        # the first of them ends the others
        time.sleep(OTHERS_WAIT + here.rank)
    if speaks or is_left_over(os.environ, here) or all_end_with_one(os.environ, here):
        say(str(error))
    os._exit(status)


@contextmanager
def bounded(seconds, what, rank, then, status=1):
    """End the job with one line if the body, which may wait for other ranks, takes longer than `seconds`.

    then: how the line goes on.
    """

    def expired():
        say(f"rank {rank}: {what} did not end within {seconds:g} s; {then}")
        os._exit(status)

    # rank 0 speaks first; should it be the dead one, another does
    timer = threading.Timer(seconds if rank == 0 else seconds + 5, expired)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leave_saved(topology, message):
    """End all ranks, rank 0 with status SAVED and last of all: launchers kill the others once one status is not 0."""
    rank = topology.world.Get_rank()
    sys.stdout.flush()
    with bounded(GOODBYE, "the end of MPI", rank, message, SAVED):
        topology.close()
    if rank == 0:
        say(message)
        time.sleep(1.0)
    os._exit(SAVED if rank == 0 else 0)


_patience = PATIENCE


def be_patient(seconds):
    """Wait for other ranks so long from now on, where nothing else is said."""
    global _patience
    _patience = seconds


def wait_for(done, what, patience=None, call=None):
    """Wait until done(), such as the Test of an MPI request, is true; `call` as `waits` has it.

    Raises TimeoutError after `patience` seconds; None: what `be_patient` was told last, PATIENCE at first.
    """
    patience = _patience if patience is None else patience
    started = time.perf_counter()
    with waits(what, call):
        while not done():
            waited = time.perf_counter() - started
            if waited > patience:
                raise TimeoutError(
                    f"waited {patience:.0f} s for {what}; another rank has not come to it: it is slow, stuck or gone, "
                    "see its output"
                )
            # another rank may need this core
            time.sleep(min(1e-3, waited / 16))


class Call(NamedTuple):
    """One of the things that all `members`, world ranks, do together: the `number`th of its kind among them."""

    kind: str
    members: tuple[int, ...]
    number: int


class Wait(NamedTuple):
    """What this rank waits for; `serial` tells two waits apart, `call` is None where nothing is known of the others."""

    serial: int
    what: str
    call: Call | None
    since: float


_waits, _serials, _calls = [], count(), Counter()


def called(kind, members):
    """The Call that this rank has now come to; None where `members` is."""
    if members is None:
        return None
    _calls[kind, members] += 1
    return Call(kind, members, _calls[kind, members])


def counted(kind, times=1):
    """Count what every rank must do equally often, though they do not do it together."""
    _calls[kind, ()] += times


def calls_so_far():
    """{(kind, members): number of the last one that this rank has come to}; without members what was `counted`."""
    return dict(_calls)


def now_waits():
    """The Wait that this rank is in, or None."""
    try:
        return _waits[-1]
    except IndexError:
        return None


@contextmanager
def waits(what="other ranks", call=None):
    """The body waits for other ranks: a watchdog knows by it which rank is stuck, and which wait for that one."""
    _waits.append(Wait(next(_serials), what, call, time.monotonic()))
    try:
        yield
    finally:
        _waits.pop()


def where(rank):
    """A rank as a message names it."""
    return f"rank {rank} on {socket.gethostname()}"


def numbered(ranks):
    """Ranks as a line names them."""
    shown = ", ".join(map(str, ranks[:6])) + (f" and {len(ranks) - 6} more" if len(ranks) > 6 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


class Watchdog:
    """Ends the job with one line if this rank makes no progress for `patience` seconds, a little later if it waits.

    Attributes:
        doing: what this rank is at, for the line.
    """

    def __init__(self, rank, patience):
        # where a watchdog watches, it is the one that ends a wait, and names who is stuck
        be_patient(max(PATIENCE, patience + 4 * OTHERS_WAIT))
        self._rank, self._patience, self.doing = rank, patience, "at the start"
        self._last, self._begun, self._over = time.monotonic(), False, False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing=None):
        """This rank goes on."""
        self._last = time.monotonic()
        self._begun, self.doing = self._begun or doing is not None, doing or self.doing

    def close(self):
        """The run is over, and what this process does next is not watched."""
        self._over = True

    def _watch(self):
        while not self._over and (now := time.monotonic()) < self._last + self._limit():
            time.sleep(1.0)
            if time.monotonic() > now + 5:
                self.beat()  # this process itself was stopped for a while
        if self._over:
            return
        wait = now_waits()
        stuck = f"is stuck {self.doing}" if wait is None else f"waits for {wait.what} {self.doing}"
        say(
            f"{where(self._rank)} {stuck}: no progress for {self._patience:g} s; the job ends and the last complete "
            "checkpoint stays; start it again, without a node that does this again, or with more --run.patience"
        )
        os._exit(1)

    def _limit(self):
        # the rank that is stuck speaks first, and of those that wait one alone gets to speak
        later = OTHERS_WAIT + self._rank if _waits else 0
        return later + (self._patience if self._begun else max(START_UP, self._patience))
