"""The optimisers that the trainer can put inside Parle and Entropy-SGD, `algorithm.inner`."""

from collections import defaultdict
from typing import Any

import torch

from ..equations import FUSED


class Together(torch.optim.Optimizer):
    """Several optimisers, each over parameters of its own, as one: their groups and their state, and a step of all."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.optimizers, self.param_groups, self.state = optimizers, groups, defaultdict(dict)
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step(closure)


def adamw(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with torch's moments, in one pass over memory where torch has a kernel for it."""
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=device in FUSED or None)


def muon(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon for the matrices, whose steps are as long as AdamW's would be, so that one rate fits; AdamW for the rest.

    Raises ValueError where there is no matrix.
    """
    params = [p for group in groups for p in group["params"]]
    matrices, rest = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
    if not matrices:
        raise ValueError("muon moves matrices, and this network has none: take adamw")
    first = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together(first, adamw([{"params": rest}], lr, weight_decay)) if rest else first


INNERS = {"adamw": adamw, "muon": muon}
