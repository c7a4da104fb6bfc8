"""Data in the memory of the device that trains, as the bytes that they are, whose mini-batches are gathered there."""

import numpy as np
import torch

from .moving import to_device

PIECE = 1 << 26  # bytes that are brought there at a time


def fits(size, free, share, ranks):
    """Whether `size` bytes are at most `share` of a device's `free` bytes, which so many ranks divide."""
    return size * ranks <= share * free


def upload(array, device):
    """An array, memory-mapped or not, as a tensor on the device."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    whole = torch.empty(array.shape, dtype=dtype, device=device)
    rows = max(1, PIECE * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        whole[start : start + rows].copy_(torch.from_numpy(np.array(array[start : start + rows])))
    return whole


class Resident:
    """A data set on a device, of which many samples are given at once.

    Args:
        count: number of samples.
        gather: the samples of indices, an int64 tensor on the device.
        device: torch device.
    """

    def __init__(self, count, gather, device):
        self._count, self._gather, self._device = count, gather, device

    def __len__(self):
        return self._count

    def __getitems__(self, indices):
        return self._gather(to_device(torch.as_tensor(indices), self._device))
