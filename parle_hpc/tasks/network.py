"""The network for images that the settings name, made for a data set."""

import os

import torch

from .. import models
from ..errors import BadInput, first_line


def network(wanted, data):
    """The network that `wanted`, the section `model`, names for this DataSet, with new weights.

    Raises BadInput where it has no such option, cannot be made so, is larger than the memory, or does not take the
    images.
    """
    known = models.options(wanted.name)
    given = wanted.model_dump(exclude={"name"}, exclude_none=True)
    for key in given:
        if key not in known:
            raise BadInput(f"--model.{key}: {wanted.name} has no such option, it has {', '.join(known)}")
    shape = data.train.images.shape[1:]
    given.update(num_classes=data.classes, in_channels=shape[0])
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with torch.device("meta"):
            size = sum(4 * tensor.numel() for tensor in models.build(wanted.name, **given).parameters())
        if size > memory:
            raise ValueError(f"its weights are {size / 1e9:.0f} GB, and the memory here {memory / 1e9:.0f} GB")
        # a quarter faster for LeNet on a CPU, and no network was slower (docs/benchmarks.md)
        model = models.build(wanted.name, **given).to(memory_format=torch.channels_last)
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"--model.name {wanted.name}: {first_line(error)}") from None
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        others = " or ".join(name for name in models.MODELS if takes(name, shape))
        raise BadInput(
            f"--model.name {wanted.name} does not take {data.name}'s images, {size} ({first_line(error)}); "
            f"{f'take {others}' if others else 'bring the images to another size'}"
        ) from None
    return model.train()


def takes(name, shape):
    """Whether a network, with its usual options, takes images of a shape (C, H, W)."""
    try:
        with torch.device("meta"):
            models.build(name, in_channels=shape[0]).eval()(torch.zeros(1, *shape))
    except RuntimeError:
        return False
    return True
