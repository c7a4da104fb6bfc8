"""How a run ends when it must: one clear line, from one rank, and an exit status that says why."""

import argparse
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager

from .placement import placement

BAD_INPUT, DIVERGED, SAVED = 2, 3, 85
PATIENCE = 600.0  # seconds to wait for other ranks before the job is ended
OTHERS_WAIT = 15.0  # seconds in which rank 0 gets its line out before the others leave


class BadInput(ValueError):
    """Something that the user can put right: one line that says what is wrong and what would be right."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


class Saved(Exception):
    """The run was asked to end, and its state is saved."""


class Drifted(RuntimeError):
    """The ranks of a replica do not hold the same weights any more."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are BadInput, like every other mistake."""

    def error(self, message):
        raise BadInput(message)


def say(message):
    """One line on stderr in a single write, so that the lines of several ranks do not mix."""
    sys.stderr.write(f"parle_hpc: {' '.join(message.split())}\n")
    sys.stderr.flush()


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


def wait_for(done, what, patience=PATIENCE):
    """Wait until done(), such as the Test of an MPI request, is true.

    Raises TimeoutError after `patience` seconds.
    """
    started = time.perf_counter()
    while not done():
        waited = time.perf_counter() - started
        if waited > patience:
            raise TimeoutError(f"{what} did not arrive within {patience:.0f} s; another rank is dead or stuck")
        # another rank may need this core
        time.sleep(min(1e-3, waited / 16))


def where(rank):
    """A rank as a message names it."""
    return f"rank {rank} on {socket.gethostname()}"


class Watchdog:
    """Ends the job with one line if this rank makes no progress for `patience` seconds.

    Where one rank is stuck and the others wait for it, its own time runs out first.

    Attributes:
        doing: what this rank is at, for the line.
    """

    def __init__(self, rank, patience):
        self._rank, self._patience, self.doing = rank, patience, "starting"
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing=None):
        """This rank goes on."""
        self._last = time.monotonic()
        self.doing = doing or self.doing

    def _watch(self):
        while (left := self._last + self._patience - time.monotonic()) > 0:
            time.sleep(left)
        say(
            f"{where(self._rank)} has been stuck for {self._patience:g} s, {self.doing}, or waits for a rank that is; "
            "the job ends and the last complete checkpoint stays: start it again, on another node if it comes back; "
            "--run.patience changes the time"
        )
        os._exit(1)
