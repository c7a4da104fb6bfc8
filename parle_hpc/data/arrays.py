"""What arrays hold: which axis is the channels', whole numbers in whatever type, and whether all of it is there."""

import math

import numpy as np

from ..errors import BadInput

CHANNELS = (1, 3, 4)  # gray, RGB, RGB and alpha
LAYOUT = "N x C x H x W"


def channel_axis(shape):
    """The axis of images' channels, 1 or 3, by the sizes of all four; None where it may be either."""
    second, last = (shape[axis] in CHANNELS for axis in (1, 3))
    return None if second == last else 1 if second else 3


def integers(found, count, what):
    """`count` whole numbers of any type, in a row or a column, as int64 (count,).

    Raises BadInput, which begins with `what`.
    """
    array = np.asarray(found)
    one_axis = max((1, *array.shape)) == array.size == count
    if array.dtype.kind not in "biuf" or not one_axis:
        raise BadInput(f"{what} must be {count} integers; it is {array.dtype} {array.shape}")
    values = array.reshape(-1).astype(np.float64)
    odd = ~(np.abs(values) < 2**53) | (values != np.rint(values))
    if odd.any():
        raise BadInput(f"{what} must be {count} integers; it holds {values[odd][0]:g}")
    return array.reshape(-1).astype(np.int64)


def written(found):
    """Whether an HDF5 data set holds all that its shape promises: what was never written would be read as zeros."""
    if 0 in found.shape:
        return True
    if found.chunks is None:
        return found.id.get_storage_size() > 0
    chunks = (math.ceil(size / chunk) for size, chunk in zip(found.shape, found.chunks, strict=True))
    return found.id.get_num_chunks() == math.prod(chunks)
