"""Images and labels as arrays hold them, of any layout and type, and without loss as the trainer has them.

What a message calls an array, with the file that it is from, comes before it, as `what`.
"""

import math

import numpy as np

from ..errors import BadInput, brief

CHANNELS = (1, 3, 4)  # gray, RGB, RGB and alpha
LAYOUT = "N x C x H x W"
BLOCK = 1 << 24  # pixels that are converted at a time
NUMBER = "as np.unique(labels, return_inverse=True)[1] does"


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
    return found.id.get_num_chunks() >= math.prod(chunks)


# labels


def class_numbers(labels, notes):
    """{part: int64 (N,)}, from 0, and the number of classes, of {part: (what to call it, labels in any form)}."""
    numbers = {part: numbers_in(what, np.asarray(array[...])) for part, (what, array) in labels.items()}
    low, high = (find(int(find(array)) for array in numbers.values()) for find in (min, max))
    what, train = labels["train"][0], numbers["train"]
    if low < 0:
        raise BadInput(f"{what}: labels reach from {low} to {high}; number the classes from 0, {NUMBER}")
    if low == high:
        raise BadInput(f"{what}: all labels are {low}; a set has two classes or more")
    if low == 1:
        notes.append(f"labels reach from 1 to {high}: each is one less now")
        numbers = {part: array - 1 for part, array in numbers.items()}
        high, train = high - 1, numbers["train"]
    if high >= len(train):
        raise BadInput(
            f"{what}: labels reach to {high}, and there are {len(train)} training images; number the classes from 0 "
            f"without gaps, {NUMBER}"
        )
    missing = sorted(set(range(high + 1)) - set(train.tolist()))
    if missing:
        notes.append(f"no training image of class {brief(', '.join(map(str, missing)))}")
    return numbers, high + 1


def numbers_in(what, labels):
    """Labels in any form, one-hot too, as int64 (N,)."""
    if labels.dtype.kind in "SUO":
        raise BadInput(f"{what} is text; number the classes from 0, {NUMBER}")
    if labels.size == 0:
        raise BadInput(f"{what} is empty")
    if labels.ndim == 2 and min(labels.shape) > 1:
        if labels.dtype.kind not in "biuf" or not ((labels == 0) | (labels == 1)).all() or (labels.sum(1) != 1).any():
            raise BadInput(f"{what} is {labels.shape} and not one-hot; right is one class an image, (N,) integers")
        return labels.argmax(1)
    return integers(labels, labels.size, what)


# images


def numbers_first(images, labels):
    """The images with the axis that counts them first, which in MATLAB's arrays is the last.

    Not where HDF5 has it last: MATLAB's h5write reverses all axes, and height and width with them.
    """
    arrays = {part: array for part, (_, array) in images.items() if isinstance(array, np.ndarray) and array.ndim}
    first, last = (all(a.shape[at] == len(labels[part]) for part, a in arrays.items()) for at in (0, -1))
    if first or not last or len(arrays) < len(images):
        return images
    return {part: (what, np.moveaxis(array, -1, 0)) for part, (what, array) in images.items()}


def line_up(what, array, count, channels):
    """(`count` images, the axis of their channels: 1, 3, or None of gray ones)."""
    shape = tuple(array.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise BadInput(f"{what} is {shape}; right is N x H x W, N x C x H x W or N x H x W x C")
    if shape[0] != count:
        turn = "np.moveaxis(images, -1, 0) puts the last axis first" if shape[-1] == count else "right is one of each"
        raise BadInput(f"{what}, {shape}, holds {shape[0]} images, and there are {count} labels; {turn}")
    if len(shape) == 3:
        return array, None
    axis = {"first": 1, "last": 3}[channels] if channels else channel_axis(array.shape)
    if axis is None:
        raise BadInput(
            f"{what} is {shape}, whose channels may be the second axis or the last; say --channels first or "
            "--channels last"
        )
    return array, axis


def blocks(array):
    """Pairs of a slice of the images and what is in it."""
    step = max(1, BLOCK // math.prod(array.shape[1:]))
    for start in range(0, len(array), step):
        part = slice(start, start + step)
        yield part, array[part]


def scale_of(images, notes):
    """255 where the pixels reach from 0 to 1, 1 where to 255, of {part: (what to call it, images)}."""
    reach = {}
    for part, (what, array) in images.items():
        if array.dtype.kind not in "biuf":
            raise BadInput(f"{what} is {array.dtype}; right are whole numbers of 0 to 255, of any type")
        spans = [(float(block.min()), float(block.max())) for _, block in blocks(array)]
        low, high = np.min(spans), np.max(spans)
        if array.dtype.kind in "iu" and low >= 0 and high > 255:
            bits = 1 << (int(high).bit_length() - 8)
            raise BadInput(
                f"{what} reaches from {low:g} to {high:g}, and bytes to 255; save (images // {bits}).astype(np.uint8)"
            )
        if not 0 <= low <= high <= 255:
            raise BadInput(
                f"{what} reaches from {low:g} to {high:g}; right are pixels of 0 to 255, from before they "
                "were normalised, as np.uint8"
            )
        reach[part] = low, high
    (what, _), (other, _) = images.values()
    (low, high), (_, others) = reach.values()
    if high == 0:
        raise BadInput(f"{what} is 0 alone; right are pixels of 0 to 255")
    if (high <= 1) != (others <= 1):
        raise BadInput(f"{what} reaches to {high:g}, and {other} to {others:g}; bring both to 0 to 255")
    if high <= 1:
        notes.append("pixels reach from 0 to 1: times 255 now")
    elif high < 128:
        notes.append(
            f"pixels reach from {low:g} to {high:g}, of 0 to 255: --data.preprocessing standardize scales them"
        )
    return 255 if high <= 1 else 1


def as_bytes(what, array, axis, scale):
    """Images as uint8 (N, C, H, W), contiguous, without loss."""
    order = {None: (0, 1, 2), 1: (0, 1, 2, 3), 3: (0, 3, 1, 2)}[axis]
    shape = [array.shape[axis] for axis in order]
    found = np.empty(shape if axis else [shape[0], 1, *shape[1:]], np.uint8)
    kind = array.dtype
    # one over 255 is rounded in the type that it is in, or was in
    loose = 255 * max(np.finfo(kind).eps, np.finfo(np.float32).eps) if kind.kind == "f" and scale > 1 else 0
    for part, block in blocks(array):
        if kind.kind == "f":
            exact = block.astype(np.float64) * scale
            block = np.rint(exact)
            if np.abs(exact - block).max() > loose:
                over, times = (" over 255", "255 * ") if scale > 1 else ("", "")
                raise BadInput(
                    f"{what} is {kind} and not whole numbers{over}, of which bytes lose something; save "
                    f"np.rint({times}images).astype(np.uint8) if that is right"
                )
        elif scale > 1:
            block = block * np.uint8(scale)
        turned = block.transpose(order).astype(np.uint8)
        found[part] = turned if axis else turned[:, None]
    return found
