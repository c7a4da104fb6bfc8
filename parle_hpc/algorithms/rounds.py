"""An optimiser whose replicas meet once in L mini-batches: what Parle and DiLoCo have in common."""

import time
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from ..cluster.agreement import compare_replica
from ..coupling.gather import Gather
from .flat_optimizer import FlatOptimizer
from .flat_state import require
from .inner import PREFIX, Inner


class Rounds(FlatOptimizer):
    """L inner steps of y, by the algorithm's own equations or by another optimiser inside, then a coupling.

    At the start of a round y is x, the flat buffer that every algorithm of this kind has. Where the replica has several
    ranks, the states of `share_names` and what is reduced are divided among them, and x is put together again.

    Args:
        params, defaults: as FlatState's.
        L: inner steps (mini-batches) in a round.
        comm, replica, gather, inner: as Parle's.
        divided: whether the replica's ranks divide what they hold and reduce.
    """

    watches_blocks = True
    x: torch.Tensor

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        L: int,
        comm: Any,
        replica: Any,
        divided: bool,
        inner: Callable[..., torch.optim.Optimizer] | None,
        gather: Callable[..., None] | None,
    ) -> None:
        require(isinstance(L, Integral) and L is not True and L >= 1, "L", L, "a whole number of at least 1")
        if inner is not None:
            self.flat_names = tuple(name for name in self.flat_names if name != "v_y")
        super().__init__(params, defaults, comm, replica, divided)
        self.L, self._t = L, 0
        self._mine = self._layout.share
        self._inner = None if inner is None else Inner(inner, self._layout, self.param_groups, self._master)
        self._gather, self.round_length = None, L
        if self._divided:
            shares = self._layout.shares
            self._gather = partial(gather, mine=self._mine) if gather else Gather(replica, shares, self.x)

    @property
    def inner(self) -> torch.optim.Optimizer | None:
        """The optimiser that makes the inner step, with rates of its own; None where it is the algorithm's."""
        return None if self._inner is None else self._inner.optimizer

    @property
    def t(self) -> int:
        """Rounds completed, t of (9)."""
        return self._t

    # What an algorithm says beside FlatOptimizer's.

    def _inner_step(self) -> None:
        """One mini-batch by the algorithm's own equations."""
        raise NotImplementedError

    def _moved(self, i: int, weights: list[torch.Tensor]) -> None:
        """Another optimiser's step has brought block i of y to `weights`, one vector a run."""

    def _move(self) -> None:
        """The coupling: bring x to where the next round starts."""
        raise NotImplementedError

    def _ends_a_round(self):
        return self.progress[1] + 1 >= self.steps_in_round

    @property
    def _ranks_differ(self):
        """Whether each rank of a replica has weights of its own."""
        return False

    def _step(self):
        for reference in self._references():
            reference.poll()
        if self._inner is None:
            self._inner_step()
        else:
            self._step_of_another()
        if self._master is not None:
            self._layout.unpack(self._master)
        if self._ends_a_round():
            started = time.perf_counter()
            self._couple()
            self.coupling_seconds += time.perf_counter() - started

    def _step_of_another(self):
        if self._watching and self._outside.arrive_all():
            self._notice(self._outside.in_blocks())
        self._inner.step(self.x, self.gamma)
        lives = self._layout.live_runs() if self._master is None else self._layout.in_runs(self._master)
        for i, weights in enumerate(lives):
            self._moved(i, weights)
            if self._watching:
                self._outside.leave(i, weights)

    def _couple(self):
        if self._divided and not self.averaged:
            compare_replica(self._replica, self._layout.params)
        self.averaged = False
        self._notice(self._others_in_this_round())
        self._move()
        self._t += 1  # what sets off now is of the next round, though this step is not counted yet
        self._restart()

    def _others_before_a_step(self):
        if self._master is not None:
            return self._outside.unlike(self._master)
        if self.progress[1] == 0:
            return self._outside.unlike(self.x)
        return self._outside.since_the_last_step() if self._outside.tracks else None

    def _others_in_this_round(self):
        """Bool of shape (N,): what was seen to change during the inner steps, and what is frozen; None for nothing."""
        changed = self._outside.in_blocks()
        frozen = self._layout.frozen()
        if frozen:
            still = self._layout.marked(frozen)
            changed = still if changed is None else changed | still
        return changed

    def _put_together(self):
        """x of all ranks of the replica, of which each has moved its share; y starts there."""
        if self._gather is not None:
            self._gather(self.x)
        self._reset_y()

    def _reset_y(self):
        if self._master is not None:
            self._master.copy_(self.x)
        self._layout.unpack(self.x)
        self._outside.forget()

    def gathered(self, flat: torch.Tensor) -> torch.Tensor:
        """As FlatOptimizer's."""
        if self._gather is None:
            return flat
        whole = self._layout.zeros()
        whole[self._mine] = flat
        self._gather(whole)
        return whole

    def saved(self) -> dict[str, tuple[torch.Tensor, str]]:
        """As FlatOptimizer's, with what the inner optimiser has, of any length, where there is one."""
        found = super().saved()
        if self._inner is not None:
            kind = "own" if self._ranks_differ else "whole"
            found |= {name: (vector, kind) for name, vector in self._inner.saved().items()}
        return found

    @torch.no_grad()
    def _set_state(self, found, steps):
        super()._set_state(found, steps)
        self._t = steps // self.L
        if self._inner is not None:
            self._inner.restore({name: vector for name, vector in found.items() if name.startswith(PREFIX)})

    def _restore_weights(self):
        self._reset_y()  # at the end of a round y = x
