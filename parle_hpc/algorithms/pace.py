"""Rounds of as many inner steps as each replica's speed allows, so that fast replicas do not wait for slow ones."""

import time
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from ..cluster.topology import mpi, world_ranks
from ..cluster.waiting import called, wait_for
from .flat_state import require
from .rounds import Rounds

PACES = ("steps", "time")
SHORTEST = 4  # of L: half a round has two steps, and so a time between them
STATE = "pace"  # in the first parameter group, and with it in checkpoints
SLOWEST = "the slowest rank's seconds for a step, of a replica with pace='time'"


def lengths_of(seconds: list[float], L: int) -> list[int]:
    """L_a of each replica, from its seconds for an inner step, s_a; L for all where one of these is not known, 0.

    L_a = n L (1/s_a) / sum_b 1/s_b, rounded, in [L/2, 2 L]: all take the same time, and together n L steps.
    """
    if not all(s > 0 for s in seconds):
        return [L] * len(seconds)
    rates = [1 / s for s in seconds]
    return [max(-(-L // 2), min(2 * L, round(L * len(rates) * rate / sum(rates)))) for rate in rates]


class Paced(Rounds):
    """Rounds of L inner steps, or with pace "time" of L_a, which all replicas know of all a round ahead.

    Behind every mean each replica sends s_a, its seconds for an inner step; what arrives at the end of a round gives
    the lengths of the next one, `lengths_of`, by the same function of the same numbers on all ranks. s_a is the mean
    of the one before and of what a round took from its first step to its last, without the coupling and what follows
    it: that of the round before, which a device has over by now. In a replica it is the slowest rank's.

    Args:
        params, defaults: as FlatState's.
        pace: "steps" or "time".
        rounds: as Rounds'.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, pace: str, **rounds: Any) -> None:
        require(pace in PACES, "pace", pace, f"one of {', '.join(PACES)}")
        super().__init__(params, defaults, **rounds)
        self.pace = pace
        self._moments: list[Any] = []
        self._before: tuple[Any, Any, int] | None = None
        self._next_lengths: list[int] = []
        if pace == "time":
            require(self.L >= SHORTEST, "L", self.L, f"at least {SHORTEST} with pace='time'")
            self._paced = {"t": 0, "began": 0, "lengths": [], "seconds": 0.0}

    @property
    def _paced(self):
        """t, the steps at which this round began, L_a, and s_a: another dict at each change, since a save keeps it."""
        return self.param_groups[0][STATE]

    @_paced.setter
    def _paced(self, state):
        self.param_groups[0][STATE] = state

    @property
    def lengths(self) -> list[int] | None:
        """L_a of all replicas in the round under way; None where each makes L steps."""
        if self.pace == "steps":
            return None
        found, n = self._paced["lengths"], self._of_replica()[1]
        return found if len(found) == n else [self.L] * n  # also where a run goes on with more replicas, or fewer

    @property
    def steps_in_round(self) -> int:
        """As Counts'."""
        lengths = self.lengths
        return self.L if lengths is None else lengths[self._of_replica()[0]]

    @property
    def t(self) -> int:
        """As Rounds'."""
        return super().t if self.pace == "steps" else self._paced["t"]

    @property
    def progress(self) -> tuple[int, int]:
        """As Counts'."""
        if self.pace == "steps":
            return super().progress
        return self.t, self.steps - self._paced["began"]

    @property
    def nominal_steps(self) -> int:
        """As Counts'; the last step of a round is the last of L."""
        if self.pace == "steps":
            return super().nominal_steps
        t, within = self.progress
        return t * self.L + within * (self.L - 1) // (self.steps_in_round - 1)

    @property
    def _coupled_at(self):
        # in the middle of a round, where a state is loaded, replicas are at different steps of it
        return super()._coupled_at if self.pace == "steps" else self.t * self.L

    def _tells(self):
        return () if self.pace == "steps" else (self._paced["seconds"],)

    def _hear(self, told):
        """Take the lengths of the next round from what came with a mean: a list, as of `_tells`, for each replica."""
        self._next_lengths = lengths_of([seconds for (seconds,) in told], self.L)

    def _step(self):
        if self.pace == "time" and (self.progress[1] == 0 or self._ends_a_round()):
            self._moments.append(moment(self._layout.params[0].device))
        super()._step()

    def _couple(self):
        if self.pace == "steps":
            super()._couple()
            return
        self._measure()
        super()._couple()
        self._paced = {**self._paced, "t": self.t + 1, "began": self.steps + 1, "lengths": self._next_lengths}

    def _measure(self):
        before, seconds = self._before, self._paced["seconds"]
        # of a round that was taken up in its middle only one is known
        self._before = (*self._moments, self.steps_in_round - 1) if len(self._moments) == 2 else None
        self._moments = []
        if before is not None:
            first, last, steps = before
            new = between(first, last) / steps
            seconds = (seconds + new) / 2 if seconds else new
        if self._replica is not None:
            seconds = slowest(self._replica, seconds)
        self._paced = {**self._paced, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As FlatState's."""
        taken = "time" if any(STATE in group for group in state_dict["param_groups"]) else "steps"
        require(taken == self.pace, "pace", self.pace, f"{taken!r}, as of the state that is loaded")
        super().load_state_dict(state_dict)

    def _set_state(self, found, steps):
        super()._set_state(found, steps)
        self._moments, self._before = [], None


def moment(device):
    """Now: on a GPU an event, which happens once all that the GPU was given before is over."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first, last):
    """Seconds between two moments."""
    if isinstance(first, float):
        return last - first
    last.synchronize()
    return first.elapsed_time(last) / 1000


def slowest(replica, seconds):
    """The most seconds that a rank of a replica takes. Collective over it."""
    mine = np.array([seconds])
    most = np.empty_like(mine)
    request = replica.Iallreduce(mine, most, op=mpi().MAX)
    wait_for(request.Test, SLOWEST, call=called("agreements on the slowest rank", world_ranks(replica)))
    return float(most[0])
