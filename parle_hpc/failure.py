"""How a run ends when it must: one clear line, from one rank, and an exit status that says why."""

import argparse
import os
import sys
import threading
import time
from contextlib import contextmanager

from .placement import placement

BAD_INPUT, DIVERGED = 2, 3
TIMEOUT = 600.0  # seconds to wait for other ranks before the job is ended
OTHERS_WAIT = 15.0  # seconds in which rank 0 gets its line out before the others leave


class BadInput(ValueError):
    """Something that the user can put right: one line that says what is wrong and what would be right."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are BadInput, like every other mistake."""

    def error(self, message):
        raise BadInput(message)


def say(message):
    """One line on stderr in a single write, so that the lines of several ranks do not mix."""
    sys.stderr.write(f"parle_hpc: {' '.join(message.split())}\n")
    sys.stderr.flush()


def leave(message, status):
    """End this process with one line from rank 0, as the launcher counts, and `status`.

    A launcher ends the whole job when the first rank leaves; so the others give rank 0 time to speak.
    """
    sys.stdout.flush()
    if placement(os.environ).rank == 0:
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


def wait_for(done, what, timeout=TIMEOUT):
    """Wait until done(), such as the Test of an MPI request, is true.

    Raises TimeoutError after `timeout` seconds.
    """
    started = time.perf_counter()
    while not done():
        waited = time.perf_counter() - started
        if waited > timeout:
            raise TimeoutError(f"{what} did not arrive within {timeout:.0f} s; another rank is dead or stuck")
        # another rank may need this core
        time.sleep(min(1e-3, waited / 16))
