"""A mini-batch of any form, brought to the device that trains."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping

import torch


def to_device(batch, device):
    """`batch` with its tensors on `device`, also those inside dicts, lists, tuples, named tuples and dataclasses.

    What has a method `to(device)` moves itself. Anything else, such as a NumPy array, stays as it is. Tensors reach
    CUDA from pinned memory, without waiting.
    """
    if isinstance(batch, torch.Tensor):
        if device.type == "cuda" and batch.device.type == "cpu" and not batch.is_pinned():
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)
    if isinstance(batch, type):
        return batch
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if dataclasses.is_dataclass(batch):
        moved = copy.copy(batch)
        for field in dataclasses.fields(batch):
            if hasattr(batch, field.name):
                # of a frozen one, too
                object.__setattr__(moved, field.name, to_device(getattr(batch, field.name), device))
        return moved
    if isinstance(batch, Mapping):
        pairs = {key: to_device(value, device) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return type(batch)(pairs)
        # it may be more than its pairs, as a defaultdict is
        moved = copy.copy(batch)
        moved.update(pairs)
        return moved
    if isinstance(batch, tuple):
        items = [to_device(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        moved = copy.copy(batch)
        moved[:] = [to_device(item, device) for item in batch]
        return moved
    return batch
