"""Local SGD with a late start: Lin et al. 2018, Don't use large mini-batches, use local SGD (arXiv:1808.07217)."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

from torch.optim.optimizer import ParamsT

from .diloco import DiLoCo
from .flat_state import require


class LocalSGD(DiLoCo):
    """Local SGD: each replica makes L steps of SGD alone, then all go on from the mean of their weights.

    Algorithm 1 of the paper, with L for H and y^a for w_k:

        y^a = y^a - eta (g + mu v) ,  v = mu v + g                          line 6, Nesterov's momentum, each its own
        y^a = 1/n sum_a y^a                                                 line 9, after L steps

    which is DiLoCo with an outer rate of 1 and without outer momentum. Until `post_local_start` the mean is taken after
    every step (post-local SGD, section 3), which is data-parallel SGD over all replicas: the mean of steps from the
    same weights is the step of the mean gradient. Every mean is waited for.

    Args:
        params, lr, momentum, L, weight_decay, comm, replica, gather: as DiLoCo's.
        post_local_start: mini-batches after which the replicas begin to train alone.

    Raises ValueError for a setting out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        L: int = 25,
        post_local_start: int = 0,
        weight_decay: float = 0.0,
        comm: Any = None,
        replica: Any = None,
        gather: Callable[..., None] | None = None,
    ) -> None:
        right = "a whole number of at least 0"
        whole = isinstance(post_local_start, Integral) and post_local_start is not True
        require(whole and post_local_start >= 0, "post_local_start", post_local_start, right)
        self.post_local_start = post_local_start
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            L=L,
            outer_lr=1.0,
            outer_momentum=0.0,
            weight_decay=weight_decay,
            comm=comm,
            replica=replica,
            gather=gather,
        )

    def _facts(self):
        return {**super()._facts(), "post_local_start": self.post_local_start}

    def _ends_a_round(self):
        return self.steps < self.post_local_start or super()._ends_a_round()
