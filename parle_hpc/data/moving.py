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

    def move(tensor):
        if device.type == "cuda":
            tensor = pin(tensor)
        return tensor.to(device, non_blocking=True)

    return each(batch, move, lambda thing: thing.to(device))


def pinned(batch):
    """`batch` with the tensors that `to_device` finds in pinned memory; what moves itself stays as it is."""
    return each(batch, pin, lambda thing: thing)


def pin(tensor):
    return tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor


def each(batch, of_tensor, of_mover):
    """`batch` with of_tensor(tensor) for its tensors, and of_mover(thing) for what has a method `to`."""
    if isinstance(batch, torch.Tensor):
        return of_tensor(batch)
    if isinstance(batch, type):
        return batch
    if callable(getattr(batch, "to", None)):
        return of_mover(batch)
    if dataclasses.is_dataclass(batch):
        moved = copy.copy(batch)
        for field in dataclasses.fields(batch):
            if hasattr(batch, field.name):
                # of a frozen one, too
                object.__setattr__(moved, field.name, each(getattr(batch, field.name), of_tensor, of_mover))
        return moved
    if isinstance(batch, Mapping):
        pairs = {key: each(value, of_tensor, of_mover) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return type(batch)(pairs)
        # it may be more than its pairs, as a defaultdict is
        moved = copy.copy(batch)
        moved.update(pairs)
        return moved
    if isinstance(batch, tuple):
        items = [each(item, of_tensor, of_mover) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        moved = copy.copy(batch)
        moved[:] = [each(item, of_tensor, of_mover) for item in batch]
        return moved
    return batch
