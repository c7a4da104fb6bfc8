"""Weights that are others for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept(params: list[torch.Tensor]) -> Iterator[None]:
    """What the body makes of the parameters ends with it: after it they are what they were, bit for bit."""
    before = [p.detach().clone() for p in params]
    try:
        yield
    finally:
        if before:
            torch._foreach_copy_([p.detach() for p in params], before)
