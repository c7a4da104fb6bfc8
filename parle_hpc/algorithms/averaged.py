"""Averages of the weights over time, rivals that any algorithm can have: EMA and SWA.

optimizer = Averaged(Parle(model.parameters(), lr=0.1, batches_per_epoch=B, comm=topology.cross), "swa", start=15)
...                                                      # a loop as without it
with optimizer.at_reference(), batchnorm_of_reference(model, loader, topology):
    validate(model)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ..cluster.fingerprint import in_memory_order
from ..coupling.choice import reference_over
from .flat_state import require
from .kept import kept

AVERAGES = ("ema", "swa")
COUNT = "averaged"  # in the parameter groups, which go with checkpoints: how many rounds are in the average


class Averaged:
    """Another optimiser, with an average of the weights after its rounds for a reference.

    After a round, and its coupling, each replica takes its live weights w, which for Parle are x^a, into its average u:

        u = decay u + (1 - decay) w        "ema": Polyak and Juditsky, 1992
        u = (n u + w) / (n + 1)            "swa": Izmailov et al., 2018, Algorithm 1; n rounds are in u

    The first w is u. The reference is the mean of u over the replicas, and until there is one that of the optimiser.
    All else is the optimiser's, for which schedulers are made: what is not found here is looked for there.

    Args:
        optimizer: any other of this package.
        average: "ema" or "swa".
        decay: of "ema", in [0, 1).
        start: rounds after which averaging begins.

    u has the length of all weights on each rank, in float32, or float64 where one is. Raises ValueError for a setting
    out of range.
    """

    def __init__(self, optimizer: Any, average: str, *, decay: float = 0.9, start: int = 0) -> None:
        require(average in AVERAGES, "average", average, f"one of {', '.join(AVERAGES)}")
        require(0 <= decay < 1, "decay", decay, "in [0, 1)")
        require(start >= 0, "start", start, "at least 0")
        self.optimizer, self._start = optimizer, start
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._dtype = torch.float32
        for p in self._params:
            self._dtype = torch.promote_types(self._dtype, p.dtype)
        update = get_ema_multi_avg_fn(decay) if average == "ema" else swa
        self._model = AveragedModel(self._live(), multi_avg_fn=update)
        self._count(0)
        self._wait_seconds, self._bytes_sent = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        """What the optimiser has."""
        if name.startswith("__"):
            raise AttributeError(name)  # a copy, which has no optimiser yet, is asked for these
        return getattr(self.optimizer, name)

    @property
    def rounds_averaged(self) -> int:
        """How many rounds are in the average."""
        return self.param_groups[0][COUNT]

    def _count(self, rounds):
        for group in self.param_groups:
            group[COUNT] = rounds

    @property
    def _average(self):
        return self._model.module[0].detach()

    @torch.no_grad()
    def _live(self):
        """The live weights, as a network of one vector, shape (N,)."""
        vectors = [in_memory_order(p.detach()).to(self._dtype) for p in self._params]
        return torch.nn.ParameterList([torch.cat(vectors)])

    @property
    def coupling_wait_seconds(self) -> float:
        """Seconds spent waiting for other ranks so far."""
        return self.optimizer.coupling_wait_seconds + self._wait_seconds

    @property
    def coupling_bytes_sent(self) -> int:
        """Payload of this rank so far, in bytes."""
        return self.optimizer.coupling_bytes_sent + self._bytes_sent

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the optimiser's, and at the end of a round averaged."""
        loss = self.optimizer.step(closure)
        rounds, within = self.progress
        if not within:
            self._take(rounds)
        return loss

    def _take(self, rounds):
        if rounds <= self._start:
            # also where a run that goes on has got more rounds, and begins later
            self._count(0)
            return
        self._model.n_averaged.fill_(self.rounds_averaged)
        self._model.update_parameters(self._live())
        self._count(self.rounds_averaged + 1)

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """The model holds the average inside, and its live weights again, bit for bit, after. As the optimiser's."""
        with self.optimizer.at_reference():
            # of which nothing is under way any more, so that its communicator is free
            if not self.rounds_averaged:
                yield
                return
            with kept(self._params):
                self._put(self._mean_of_replicas())
                yield

    def _mean_of_replicas(self):
        comm, terms = (getattr(self.optimizer, name, None) for name in ("_comm", "_terms"))
        reference = reference_over(comm, self._average, terms=terms, apart=True)
        mean = reference.exact(self._average, started=False)
        self._bytes_sent += reference.bytes_sent
        self._wait_seconds += reference.wait_seconds
        return mean

    @torch.no_grad()
    def _put(self, flat):
        parts = torch.split(flat, [p.numel() for p in self._params])
        torch._foreach_copy_([in_memory_order(p.detach()) for p in self._params], list(parts))

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's, with the average, shape (N,), and the steps."""
        return {**self.optimizer.state_dict(), "average": self._average.clone(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises ValueError where that was of an optimiser without average."""
        state = dict(state_dict)
        if "average" not in state:
            raise ValueError("the state has no average: it is that of an optimiser that is not averaged")
        average, steps = state.pop("average"), state.pop("steps")
        self.optimizer.load_state_dict(state)
        self.optimizer.steps = steps
        self._average.copy_(average)

    def saved(self) -> dict[str, tuple[torch.Tensor, str]]:
        """As the optimiser's, with the average once there is one."""
        found = self.optimizer.saved()
        return {**found, "average": (self._average, "whole")} if self.rounds_averaged else found

    def restore(self, saved: dict[str, np.ndarray], steps: int, groups: list[dict[str, Any]]) -> None:
        """As the optimiser's."""
        self.optimizer.restore(saved, steps, groups)
        if "average" in saved:
            self._average.copy_(torch.from_numpy(saved["average"]))


def swa(averaged, live, count):
    """torch's, with the count as a number: the reciprocal of a tensor of integers is rounded to float32."""
    get_swa_multi_avg_fn()(averaged, live, count.item())
