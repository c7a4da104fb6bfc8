"""The paper's networks, by name.

build("lenet", num_classes=10, in_channels=1, dropout=0.25)
build("wrn", num_classes=100, in_channels=3, dropout=0.3, depth=28, widen=10)
"""

import inspect
from typing import Any

from torch import nn

from .allcnn import AllCNN
from .lenet import LeNet
from .wrn import WRN

MODELS: dict[str, type[nn.Module]] = {"lenet": LeNet, "allcnn": AllCNN, "wrn": WRN}


def options(name: str) -> tuple[str, ...]:
    """The names of the options that a network takes, e.g. ("dropout",)."""
    return tuple(key for key in inspect.signature(MODELS[name]).parameters if key not in ("num_classes", "in_channels"))


def build(name: str, *, num_classes: int = 10, in_channels: int = 1, **options: Any) -> nn.Module:
    """A new network of the registry.

    Args:
        name: one of MODELS.
        num_classes, in_channels: classes of the data and channels of its images.
        options: the model's own, e.g. dropout.

    Raises ValueError for an unknown name, or where the network cannot be made so.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, in_channels=in_channels, **options)
