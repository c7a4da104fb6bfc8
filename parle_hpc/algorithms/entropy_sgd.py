"""Entropy-SGD, section 2.1."""

import math
from collections.abc import Callable

import torch
from torch.optim.optimizer import ParamsT

from .parle import Parle


class EntropySGD(Parle):
    """Entropy-SGD, (6a)-(6c): Parle without its elastic term. Arguments as Parle's; eta is `lr`, eta' is `inner_lr`."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        L: int = 25,
        alpha: float = 0.75,
        gamma0: float = 100.0,
        batches_per_epoch: int,
        inner_lr: float | None = None,
        weight_decay: float = 0.0,
        inner: Callable[..., torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            L=L,
            alpha=alpha,
            gamma0=gamma0,
            rho0=math.inf,
            batches_per_epoch=batches_per_epoch,
            inner_lr=inner_lr,
            weight_decay=weight_decay,
            inner=inner,
        )
