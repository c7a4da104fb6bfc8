"""Elastic-SGD, section 2.2."""

import time
import weakref
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from ..coupling.choice import reference_over
from ..coupling.posting import Membership
from ..equations import eq_7a, eq_7b, eq_9
from .flat_optimizer import SGD_ROUND, FlatOptimizer
from .flat_state import require
from .parle import RHO_CLIP


class ElasticSGD(FlatOptimizer):
    """Elastic-SGD, (7a) and (7b): every step is coupled. The replicas move by Nesterov's momentum, x by (7b).

    Args:
        params, lr, momentum, weight_decay, comm: as Parle's; lr is eta of (7a) and (7b).
        rho0: rho at the start. Stable only while lr (h + 1/rho) < 1.357 for curvature h.
        batches_per_epoch: B of (9).
        mailbox: as Parle's; the others see x^a once in 25 steps, and what they leave counts in each.
        scoping: anneal rho by (9), with t = k since L = 1; otherwise rho stays rho0.

    Raises ValueError for a setting out of range.
    """

    flat_names = ("x", "v")
    x: torch.Tensor
    v: torch.Tensor
    round_length = SGD_ROUND
    gamma = None

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        rho0: float = 1.0,
        batches_per_epoch: int,
        scoping: bool = True,
        weight_decay: float = 0.0,
        comm: Any = None,
        mailbox: Membership | None = None,
    ) -> None:
        require(rho0 > 0, "rho0", rho0, "above 0")
        require(batches_per_epoch >= 1, "batches_per_epoch", batches_per_epoch, "at least 1")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, comm)
        self.rho0, self.B, self.scoping = rho0, batches_per_epoch, scoping
        self._set_terms(rho0=rho0, batches_per_epoch=batches_per_epoch, scoping=scoping)
        self._mailbox, self._moved = mailbox, 0
        # the live weights are scattered over the network's tensors; a reduction wants one vector
        self._sent = self._layout.zeros() if self._master is None else self._master
        self._make_mean()

    def _make_mean(self):
        me = weakref.ref(self)
        mailbox = self._mailbox and (self._mailbox, self._sent, None, lambda: divmod(me()._moved, SGD_ROUND))
        self._mean = reference_over(self._comm, self.x, terms=self._terms, mailbox=mailbox)

    @property
    def rho(self) -> float:
        """rho of this step, (9) with t = k where scoping is on."""
        return eq_9(self.rho0, self.steps, self.B, clip=RHO_CLIP) if self.scoping else self.rho0

    def _references(self):
        return [self._mean]

    def _step(self):
        started = time.perf_counter()
        mean, rho = self._own_where_taken(self._mean.collect(), self._sent), self.rho
        self.coupling_seconds += time.perf_counter() - started
        for _, group, lists, _ in self._blocks("v", "x"):
            if lists:
                xa, g, v, x = lists
                eq_7a(xa, v, g, x, eta=group["lr"], rho=rho, mu=group["momentum"])
        started = time.perf_counter()
        slices = map(self._layout.slices, (self.x, mean))
        for (index, _), x, m in zip(self._layout.blocks, *slices, strict=True):
            eq_7b([x], [m], eta=self.param_groups[index]["lr"])
        if self._master is not None:
            self._layout.unpack(self._master)
        self._restart(self.steps + 1)
        self.coupling_seconds += time.perf_counter() - started

    def _others_before_a_step(self):
        return self._outside.unlike(self._sent)

    def _take_over(self, changed, live):
        torch.where(changed, live, self.x, out=self.x)
        torch.where(changed, live, self._sent, out=self._sent)
        self._take(changed, slice(None))

    def _take_weights(self):
        self._layout.pack(self.x)
        self._restart()

    def _restart(self, moved=None):
        """x^a stands still until the next step: its mean travels during forward and backward."""
        self._taken, self._moved = None, self.steps if moved is None else moved
        if self._sent is not self._master:
            self._layout.pack(self._sent)
        self._mean.start(self._sent)

    def _newest_reference(self):
        self._mean.collect()  # leave nothing in flight behind a run's last validation
        return self.x

    def saved(self) -> dict[str, tuple[torch.Tensor, str]]:
        """As FlatOptimizer's, with the live weights, x^a of (7a), which `_sent` is a copy of."""
        return {**super().saved(), "xa": (self._sent, "whole")}

    def _restore_weights(self):
        self._layout.unpack(self._sent)
