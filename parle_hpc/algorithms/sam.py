"""SAM, a rival: Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization, 2020 (arXiv 2010.01412).

optimizer = SAM(model.parameters(), lr=0.1)
for images, labels in batches:
    optimizer.zero_grad()
    loss(model(images), labels).backward()
    with optimizer.perturbed():                          # w + eps, (2)
        loss(model(images), labels).backward()           # the gradient of (3)
    topology.average_gradients(model.parameters())       # the only reduction, where there are several ranks
    optimizer.step()
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .flat_state import require
from .kept import kept
from .sgd import SGD


class SAM(SGD):
    """SGD with the gradient at w + eps, by that paper's numbers, for its p = 2 and f the loss of a rank's mini-batch:

        min_w max_{|eps| <= rho} f(w + eps) + weight decay         (1)
        eps = rho grad f(w) / |grad f(w)|                          (2)
        g   = grad f(w + eps)                                      (3)

    Each rank makes eps of its own gradient, as sections 3 and 4 of the paper do on each accelerator, and the ranks
    average g. Weight decay is no part of f: it is added at w. Dropout is drawn anew for (3).

    Args:
        params, lr, momentum, weight_decay: as Parle's.
        ascent: rho, the length of eps over all parameters.

    Raises ValueError for a setting out of range.
    """

    _inside = False

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        ascent: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        require(ascent > 0, "ascent", ascent, "above 0")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.defaults["ascent"] = ascent

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The model holds w + eps inside, without gradients, and w again, bit for bit, after.

        eps is made of .grad as it stands. Parameters without one stand still.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = self._inside
        with kept(params):
            if params:
                self._ascend(params)
            self._inside = True
            try:
                yield
            finally:
                self._inside = before

    @torch.no_grad()
    def _ascend(self, params):
        gradients = [p.grad for p in params]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # where all gradients are 0, so is eps
        directions = torch._foreach_mul(gradients, 1 / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        torch._foreach_add_(params, directions, alpha=self.defaults["ascent"])
        for p in params:
            p.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As SGD's. Raises RuntimeError inside `perturbed`."""
        if self._inside:
            raise RuntimeError("step inside perturbed: the model holds w + eps there, not the weights that train")
        return super().step(closure)
