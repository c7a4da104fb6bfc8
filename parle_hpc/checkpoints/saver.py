"""Saves checkpoints while the run goes on: a copy of the state, written by a thread, complete once all have written."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..cluster.agreement import from_all, from_first
from ..cluster.waiting import wait_for, where
from . import files


class Saver:
    """One rank's part in the checkpoints of a run. At most one is under way.

    Args:
        out: output folder, on a file system that all ranks share.
        world: mpi4py communicator over all ranks.
        patience: seconds that a write may take where the run waits for it.
        keep: how many complete ones stay.

    Attributes:
        round: of the checkpoint under way, counted from 0; None where there is none.
        last: round of the last complete checkpoint, None before the first.
    """

    def __init__(self, out, world, patience, keep):
        self._out, self._world, self._patience, self._keep = out, world, patience, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self.round = self.last = self._future = self._facts = None
        self._started = time.monotonic()

    @property
    def age(self):
        """Seconds since the last checkpoint was started."""
        return time.monotonic() - self._started

    @property
    def written(self):
        """Whether this rank's part of the one under way is over, well or not."""
        return self._future.done()

    def start(self, round, snapshot, facts):
        """Begin to write `snapshot`, of resume.capture, in the background; `facts` go into the manifest."""
        self.round, self._facts, self._started = round, {"round": round, **facts}, time.monotonic()
        self._future = self._pool.submit(self._write, files.folder_of(self._out, round), *snapshot)

    def _write(self, folder, pieces, own, facts):
        bad = [name for name, piece in pieces.items() if not np.isfinite(piece.values).all()]
        if bad:
            raise ArithmeticError(f"{bad[0]} is not finite")
        folder.mkdir(parents=True, exist_ok=True)
        return files.write(folder, self._world.Get_rank(), pieces, own, facts)

    def settle(self):
        """Make the one under way complete, once all ranks have written; None, or what went wrong on which rank.

        Collective over all ranks, and waits for this rank's thread.
        """
        wait_for(self._future.done, f"the checkpoint of round {self.round + 1}", self._patience)
        entry = problem = None
        try:
            entry = self._future.result()
        except (OSError, ArithmeticError) as error:
            problem = f"{where(self._world.Get_rank())}: {reason(error)}"
        everyone = from_all(self._world, (entry, problem))
        problems = [p for _, p in everyone if p]
        if self._world.Get_rank() == 0 and not problems:
            try:
                folder = files.folder_of(self._out, self.round)
                files.complete(folder, [e for e, _ in everyone], self._facts)
                files.prune(self._out, self._keep)
            except OSError as error:
                problems = [f"{where(0)}: {reason(error)}"]
        problem = from_first(self._world, problems[0] if problems else None)
        if problem is None:
            self.last = self.round
        self.round = None
        return problem


def reason(error):
    """An error in a few words, and what helps against it."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left ({error.strerror}): free some, or lower --run.keep"
    return str(error).splitlines()[0]


def overdue(age, minutes):
    """Whether a checkpoint of `age` seconds is older than `minutes`."""
    return age >= 60 * minutes
