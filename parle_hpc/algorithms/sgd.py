"""SGD, the baseline."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from ..cluster.fingerprint import in_memory_order
from .counts import Counts
from .flat_optimizer import SGD_ROUND


class SGD(Counts, torch.optim.SGD):
    """torch.optim.SGD with Nesterov's momentum, under the names that the other optimisers have; the baseline.

    It is data-parallel over all ranks: the gradients are averaged before `step`, and nothing is coupled.
    """

    round_length = SGD_ROUND
    gamma = rho = None
    watches_blocks = False
    coupling_seconds = coupling_wait_seconds = 0.0
    coupling_bytes_sent = 0
    coupling_news: ClassVar[dict[str, float]] = {}

    def __init__(self, params: ParamsT, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, foreach=True
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As torch's, and counted."""
        loss = super().step(closure)
        self.steps += 1
        return loss

    def at_reference(self) -> AbstractContextManager[None]:
        """The live weights are the reference."""
        return nullcontext()

    def finish(self) -> None:
        """Nothing is ever under way."""

    def saved(self) -> dict[str, tuple[torch.Tensor, str]]:
        """As FlatOptimizer's: the live weights, and the momentum where there is one yet."""
        params = [p for group in self.param_groups for p in group["params"]]
        momenta = [self.state[p].get("momentum_buffer") for p in params]
        found = {"x": (torch.cat([in_memory_order(p.detach()) for p in params]), "whole")}
        if all(m is not None for m in momenta):
            found["v"] = (torch.cat([in_memory_order(m) for m in momenta]), "whole")
        return found

    @torch.no_grad()
    def restore(self, saved: dict[str, np.ndarray], steps: int, groups: list[dict[str, Any]]) -> None:
        """As FlatOptimizer's."""
        self.steps = steps
        params = [p for group in self.param_groups for p in group["params"]]
        sizes = [p.numel() for p in params]
        for p, values in zip(params, torch.split(torch.from_numpy(saved["x"]), sizes), strict=True):
            in_memory_order(p).copy_(values)
        if "v" in saved:
            for p, values in zip(params, torch.split(torch.from_numpy(saved["v"]), sizes), strict=True):
                self.state[p]["momentum_buffer"] = torch.empty_like(p)
                in_memory_order(self.state[p]["momentum_buffer"]).copy_(values)
        for group, settings in zip(self.param_groups, groups, strict=True):
            group.update(settings)
