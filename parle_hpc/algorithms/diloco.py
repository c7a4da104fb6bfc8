"""DiLoCo, Douillard et al. 2023 (arXiv:2311.08105), and overlapped, Kale et al. 2025 (arXiv:2502.12996)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from ..coupling.choice import reference_over
from ..equations import nesterov, proximal_step
from .flat_state import require
from .rounds import Rounds


class DiLoCo(Rounds):
    """DiLoCo: each replica trains alone for L mini-batches, then all make one step of Nesterov on how far they came.

    Algorithm 1 of the paper, with x for theta, y^a for theta_i and L for H; at the end of round t

        Delta^a = x - y^a                                                   line 8
        Delta   = 1/n sum_a Delta^a                                         line 11
        v = mu v + Delta ;  x = x - eta (Delta + mu v)                      line 12, OuterOpt
        y^a = x                                                             line 3

    with eta `outer_lr` and mu `outer_momentum`. x is the same on all replicas. The mean is of this round's y^a, so that
    every coupling waits for the network: `coupling_wait_seconds` says how long.

    With `overlap` the mean travels during the next round and is one round old when it comes; of what is new each
    replica takes its own part at once, an eager update:

        Delta~^a_t = 1/n Delta^a_t + (Delta_{t-1} - 1/n Delta^a_{t-1})

    takes the place of Delta. x differs from replica to replica then, and the reference is its mean.

    Args:
        params, comm, replica, gather: as Parle's.
        lr, momentum, weight_decay: of the inner SGD, with Nesterov's momentum; torch's schedulers anneal its rate.
        L: mini-batches in a round.
        outer_lr, outer_momentum: of the outer step; the paper's.
        overlap: whether the mean travels during the next round.
        inner: as Parle's, in place of SGD, such as partial(torch.optim.AdamW, lr=1e-3). lr is left out, and that of the
            parameter groups is the outer rate; what anneals goes over `optimizer.inner`.

    Raises ValueError for a setting out of range. `step` and `at_reference` raise Disagreement as Parle's do.
    """

    flat_names: tuple[str, ...] = ("x", "v_y", "outer_v")
    share_names = ("outer_v",)
    gamma = rho = None
    v_y: torch.Tensor
    outer_v: torch.Tensor  # v of the outer step

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float | None = None,
        momentum: float = 0.9,
        L: int = 25,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        overlap: bool = False,
        weight_decay: float = 0.0,
        comm: Any = None,
        replica: Any = None,
        inner: Callable[..., torch.optim.Optimizer] | None = None,
        gather: Callable[..., None] | None = None,
    ) -> None:
        require(outer_lr > 0, "outer_lr", outer_lr, "above 0")
        require(0 <= outer_momentum < 1, "outer_momentum", outer_momentum, "in [0, 1)")
        if inner is None:
            require(lr is not None, "lr", lr, "the rate of the inner SGD where there is no inner")
        else:
            require(lr is None, "lr", lr, "left out where inner has a rate of its own")
            require(weight_decay == 0, "weight_decay", weight_decay, "left out: it is the inner optimiser's")
        defaults = {"lr": outer_lr if inner else lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, L=L, comm=comm, replica=replica, divided=True, inner=inner, gather=gather)
        self.outer_lr, self.outer_momentum, self.overlap = outer_lr, outer_momentum, overlap
        if overlap:
            self.sent = self._layout.zeros(share=True)
        self._set_terms((self._inner and self._inner.name,), **self._facts())
        self._make_mean()

    def _facts(self):
        """What must be the same on the ranks that are coupled, by name."""
        names = ("L", "outer_lr", "outer_momentum", "overlap")
        return {name: getattr(self, name) for name in names} | {"the number of ranks in a replica": self._m}

    def _make_mean(self):
        self._mean = reference_over(self._comm, self.x[self._mine], terms=self._terms)
        # while the mean of what was sent is under way, that of x has a place of its own
        self._reference = reference_over(self._comm, self.x[self._mine], terms=self._terms) if self.overlap else None

    def _references(self):
        return [reference for reference in (self._mean, self._reference) if reference is not None]

    def _inner_step(self):
        for _, group, lists, _ in self._blocks("v_y"):
            if lists:
                y, g, v = lists
                proximal_step(y, v, g, y, eta=group["lr"], strength=0.0, mu=group["momentum"])

    def _move(self):
        live = self._layout.packed() if self._master is None else self._master
        x, y = self.x[self._mine], live[self._mine]
        if self.overlap:
            new, n = x - y, self._of_replica()[1]
            delta = self._own_where_taken(self._mean.collect(), self.sent) + (new - self.sent) / n
            self.sent.copy_(new)
        else:
            self._mean.start(y)
            delta = x - self._mean.collect()
        slices = map(self._layout.slices, (x, self.outer_v, delta))
        for (index, _), *parts in zip(self._layout.blocks, *slices, strict=True):
            if parts[0] is not None:
                eta = self.outer_lr if self._inner is None else self.param_groups[index]["lr"]
                nesterov(*([part] for part in parts), eta=eta, mu=self.outer_momentum)
        self._put_together()

    def _take_over(self, changed, live):
        torch.where(changed, live, self.x, out=self.x)
        mine = changed[self._mine]
        self.outer_v.masked_fill_(mine, 0)
        if self.overlap:
            self.sent.masked_fill_(mine, 0)
        self._take(changed, self._mine)

    def _take_weights(self):
        self._layout.pack(self.x)
        self._restart()

    def _restart(self):
        """What was sent last is under way; without overlap nothing is."""
        self._taken = None
        if self.overlap:
            self._mean.start(self.sent)

    def _newest_reference(self):
        if not self.overlap:
            return self.x
        # one after the other: ranks that start two reductions at once may not start them in the same order
        self._mean.collect()
        return self.gathered(self._reference.exact(self.x[self._mine], started=False))

    def _flat_state(self):
        state = super()._flat_state()
        return {**state, "sent": self.sent} if self.overlap else state
