"""Every wait for other ranks has a bound, and ends the job with one line that names who is stuck."""

import os
import socket
import sys
import threading
import time
from contextlib import contextmanager

from ..errors import say
from .placement import placement

PATIENCE = 600.0  # seconds to wait for other ranks before the job is ended
START_UP = 120.0  # seconds for the start of MPI and Horovod, and for what a run reads before its first round
OTHERS_WAIT = 15.0  # seconds in which rank 0 gets its line out before the others leave


def leave(message, status, speaks=None):
    """End this process with `status` and one line from the rank that `speaks`: rank 0, as the launcher counts.

    A launcher ends the whole job when the first rank leaves; so the others give that one time to speak.
    """
    sys.stdout.flush()
    if placement(os.environ).rank == 0 if speaks is None else speaks:
        say(message)
    else:
        time.sleep(OTHERS_WAIT)
    os._exit(status)


@contextmanager
def bounded(seconds, what, rank=0):
    """End the job with one line if the body, which may wait for other ranks, takes longer than `seconds`."""

    def expired():
        say(f"rank {rank}: {what} did not end within {seconds:.0f} s; another rank is dead or stuck, see its output")
        os._exit(1)

    # rank 0 speaks first; should it be the dead one, another does
    timer = threading.Timer(seconds if rank == 0 else seconds + 5, expired)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_patience = PATIENCE


def wait_for(done, what, patience=None):
    """Wait until done(), such as the Test of an MPI request, is true.

    Raises TimeoutError after `patience` seconds; None: PATIENCE, or longer where a Watchdog has more.
    """
    patience = _patience if patience is None else patience
    started = time.perf_counter()
    with waits():
        while not done():
            waited = time.perf_counter() - started
            if waited > patience:
                raise TimeoutError(f"{what} did not arrive within {patience:.0f} s; another rank is dead or stuck")
            # another rank may need this core
            time.sleep(min(1e-3, waited / 16))


_waits = 0


@contextmanager
def waits():
    """The body waits for other ranks: a watchdog knows by it which rank is stuck, and which wait for that one."""
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1


def where(rank):
    """A rank as a message names it."""
    return f"rank {rank} on {socket.gethostname()}"


class Watchdog:
    """Ends the job with one line if this rank makes no progress for `patience` seconds, a little later if it waits.

    Attributes:
        doing: what this rank is at, for the line.
    """

    def __init__(self, rank, patience):
        global _patience
        # where a watchdog watches, it is the one that ends a wait, and names who is stuck
        _patience = max(PATIENCE, patience + 4 * OTHERS_WAIT)
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
        stuck = f"waits for another rank, which is dead or stuck, {self.doing}" if _waits else f"is stuck {self.doing}"
        say(
            f"{where(self._rank)} {stuck}: no progress for {self._patience:g} s; the job ends and the last complete "
            "checkpoint stays; start it again, without a node that does this again, or with more --run.patience"
        )
        os._exit(1)

    def _limit(self):
        # the rank that is stuck speaks first, and of those that wait one alone gets to speak
        later = OTHERS_WAIT + self._rank if _waits else 0
        return later + (self._patience if self._begun else max(START_UP, self._patience))
