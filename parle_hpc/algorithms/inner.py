"""Somebody else's optimiser inside: what makes the inner step where a factory gives it, and its state in checkpoints.

Its step on the gradient of f is its own; the proximal term of (8a) comes after it, decoupled, as AdamW decouples its
weight decay. Weights of a narrower type than the state's are moved in their master.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..equations import eq_8a_apart

PREFIX = "inner."  # of the names of its state in a checkpoint
# JSON, as bytes: settings of its groups, numbers in its state, shapes and types of its tensors
ABOUT = f"{PREFIX}about"


class Inner:
    """An optimiser over the weights of a layout.

    Args:
        factory: takes parameter groups, dicts with "params", and gives a torch optimiser over all of them.
        layout: Layout.
        groups: the outer optimiser's parameter groups.
        master: flat buffer of the weights in the state's type, or None where the live weights are of it.

    Attributes:
        optimizer: what the factory gave.

    Raises ValueError where that is not a torch optimiser over these parameters.
    """

    def __init__(
        self, factory: Callable[..., Any], layout: Any, groups: list[dict[str, Any]], master: torch.Tensor | None
    ) -> None:
        self._layout, self._master = layout, master
        self._params = layout.params
        if master is not None:
            self._params = [torch.nn.Parameter(view) for view in layout.shaped(master)]
        rest = iter(self._params)
        self.optimizer = factory([{"params": [next(rest) for _ in group["params"]]} for group in groups])
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ValueError(f"inner gave {self.optimizer!r}; it must give a torch.optim.Optimizer")
        found = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(found) != len(self._params) or {id(p) for p in found} != {id(p) for p in self._params}:
            raise ValueError(
                f"inner gave a {self.name} over {len(found)} parameters; it must move the {len(self._params)} that it "
                "was given, each once"
            )

    @property
    def name(self) -> str:
        """Of its class."""
        return type(self.optimizer).__name__

    def step(self, x: torch.Tensor, gamma: float | None) -> None:
        """Its step with the gradients as they stand, then the proximal term of (8a) towards x, shape (N,).

        gamma None: without that term.
        """
        gradients = self._layout.gradients()
        for p, g in zip(self._params, gradients, strict=True):
            if g is None:
                p.grad = None
            elif self._master is not None:
                p.grad = g.as_strided(p.shape, p.stride())
        self.optimizer.step()
        if gamma is None:
            return
        moved = self._layout.live() if self._master is None else self._layout.vectors(self._master)
        pairs = dict(zip(map(id, self._params), zip(moved, self._layout.vectors(x), strict=True), strict=True))
        for group in self.optimizer.param_groups:
            mine = [pairs[id(p)] for p in group["params"] if p.grad is not None]
            if mine:
                eq_8a_apart(*map(list, zip(*mine, strict=True)), eta=float(group["lr"]), gamma=gamma)

    def saved(self) -> dict[str, torch.Tensor]:
        """{name: vector} of all that it has; what is no tensor, and settings of the groups, as JSON in bytes."""
        tensors, numbers, forms = {}, {}, {}
        for i, p in enumerate(self._params):
            for key, value in self.optimizer.state.get(p, {}).items():
                name = f"{PREFIX}{i}.{key}"
                if isinstance(value, torch.Tensor):
                    forms[name] = [list(value.shape), str(value.dtype).removeprefix("torch.")]
                    value = value.detach().reshape(-1)
                    tensors[name] = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
                else:
                    numbers[name] = value
        settings = [
            {key: float(v) if isinstance(v, torch.Tensor) else v for key, v in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        about = json.dumps({"groups": settings, "numbers": numbers, "forms": forms}).encode()
        return {ABOUT: torch.from_numpy(np.frombuffer(about, np.uint8).copy()), **tensors}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Go on from what `saved` gave; where there is nothing of it, without a state."""
        self.optimizer.state.clear()
        if ABOUT not in saved:
            return
        about = json.loads(bytes(saved[ABOUT].numpy()))
        for name, (shape, dtype) in about["forms"].items():
            p, key = self._of(name)
            value = saved[name].to(p.device, getattr(torch, dtype)).view(shape)
            if value.shape == p.shape:
                value = torch.empty_like(p, dtype=value.dtype).copy_(value)
            self.optimizer.state[p][key] = value.clone()
        for name, value in about["numbers"].items():
            p, key = self._of(name)
            self.optimizer.state[p][key] = value
        for group, settings in zip(self.optimizer.param_groups, about["groups"], strict=True):
            for key, value in settings.items():
                kept = group[key]
                if isinstance(kept, torch.Tensor):
                    kept.fill_(value)
                else:
                    group[key] = tuple(value) if isinstance(kept, tuple) else value

    def _of(self, name):
        i, _, key = name.removeprefix(PREFIX).partition(".")
        return self._params[int(i)], key
