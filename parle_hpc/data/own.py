"""A data set of the user's own: images and labels in HDF5, .npz or .npy files, by the names that people give them."""

import hashlib
import math
import re
from contextlib import ExitStack

import h5py
import numpy as np

from ..errors import BadInput, brief
from .arrays import channel_axis, integers, written
from .files import ZIP, place

SUFFIXES = (".h5", ".hdf5", ".mat", ".npz", ".npy")
HOW = "save HDF5, or np.savez('mine.npz', train_images=..., train_labels=..., test_images=..., test_labels=...)"
NAMES = "name the arrays train_images, train_labels, test_images, test_labels"
NUMBER = "as np.unique(labels, return_inverse=True)[1] does"
# the words of an array's name, or else of its file's
PARTS = {"train": {"train", "training"}, "test": {"test", "testing"}, "val": {"val", "valid", "validation", "dev"}}
KINDS = {
    "images": {"images", "image", "imgs", "img", "x", "data", "features", "feature", "inputs", "pixels"},
    "labels": {"labels", "label", "y", "targets", "target"},
}
BLOCK = 1 << 24  # pixels that are converted at a time


def read_own(source, channels=None, hint=""):
    """What `source` holds, as the trainer has it: {part: (images, labels)}, classes, checksum, and lines to say of it.

    Args:
        source: a file, or a folder with some.
        channels: "first" or "last", where the images' shape does not tell.
        hint: begins the advice where a folder has no such file.

    Raises BadInput where it cannot be told what is what, or something would be lost.
    """
    notes, parts = [], {}
    try:
        paths = files_of(source, hint)
        checksum = checksum_of(paths)
        with ExitStack() as stack:
            images, labels = choose(paths, stack, f"--source {source}", notes)
            labels, classes = class_numbers(labels, notes)
            images = numbers_first(images, labels)
            lined_up = {part: line_up(*images[part], len(labels[part]), channels) for part in images}
            scale = scale_of({part: (images[part][0], array) for part, (array, _) in lined_up.items()}, notes)
            for part, (array, axis) in lined_up.items():
                parts[part] = as_bytes(images[part][0], array, axis, scale), labels[part]
    except BadInput:
        raise
    # a damaged file raises whatever it likes
    except Exception as error:
        told = "it holds Python's objects, a pickle, which are not loaded" if "pickle" in str(error) else error
        raise BadInput(f"--source {source} cannot be read ({told}); {HOW}") from None
    train, test = (parts[part][0].shape[1:] for part in ("train", "test"))
    if train != test:
        raise BadInput(f"--source {source}: images of train {train} and test {test} differ")
    return parts, classes, checksum, notes


def files_of(source, hint):
    """The files to read."""
    path = place(source)
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        suffixes = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise BadInput(f"--source {source}: holds no {suffixes}; {hint}{HOW}")
    return found


def checksum_of(paths):
    """MD5 of what the files hold."""
    digest = hashlib.md5()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


# which array is what


def choose(paths, stack, where, notes):
    """({part: (what to call it, images)}, {part: (what to call it, labels)}), for train and test."""
    roles, found = {}, []
    for path in paths:
        for key, read in arrays_in(path, stack):
            label = key if len(paths) == 1 and key else f"{path.name}: {key}" if key else path.name
            role = tuple(only(table, key) or only(table, path.stem) for table in (PARTS, KINDS))
            found.append(label)
            if all(role):
                roles.setdefault(role, []).append((label, read))
    parts = {"train": "train", "test": "test" if any(part == "test" for part, _ in roles) else "val"}
    taken = {}
    for kind in KINDS:
        for part, name in parts.items():
            may_be = [label for label, _ in roles.get((name, kind), [])]
            if not may_be:
                raise BadInput(f"{where}: lacks {kind} of {part}, found: {brief(', '.join(found) or 'none')}; {NAMES}")
            if len(may_be) > 1:
                raise BadInput(f"{where}: both {may_be[0]} and {may_be[1]} may be the {kind} of {part}; leave one out")
            taken[kind, part] = roles[name, kind][0]
    names = {part: " and ".join(taken[kind, part][0] for kind in KINDS) for part in parts}
    left = [label for label in found if label not in {label for label, _ in taken.values()}]
    left = f"; left out: {brief(', '.join(left))}" if left else ""
    notes.append(f"train is {names['train']}, test is {names['test']}{left}")
    return ({part: (f"{where}: {taken[kind, part][0]}", taken[kind, part][1]()) for part in parts} for kind in KINDS)


def only(table, name):
    """The one key of `table` of whose words there are some in `name`; None of none or several."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    keys = [key for key, known in table.items() if known & words]
    return keys[0] if len(keys) == 1 else None


def arrays_in(path, stack):
    """The arrays in a file, as pairs of a name and what opens it."""
    with path.open("rb") as file:
        start = file.read(8)
    if h5py.is_hdf5(path):
        file, found = stack.enter_context(h5py.File(path, "r")), []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return [(name, lambda name=name: of_hdf5(file[name], path)) for name in found]
    if start.startswith(ZIP):
        archive = stack.enter_context(np.load(path, allow_pickle=False))
        return [(name, lambda name=name: np.asarray(archive[name])) for name in archive.files]
    if start.startswith(b"\x93NUMPY"):
        return [("", lambda: np.load(path, mmap_mode="r", allow_pickle=False))]
    raise BadInput(f"--source {path} is neither HDF5 nor .npz nor .npy; {HOW}")


def of_hdf5(found, path):
    """A data set of HDF5, all of which is in this file."""
    name = found.name.lstrip("/")
    if found.external or found.is_virtual:
        raise BadInput(f"--source {path}: {name} lies elsewhere, and must be in this file; copy it there")
    if found.shape is None or not written(found):
        raise BadInput(f"--source {path}: {name} was never written to its end; write the file again")
    # MATLAB writes its axes in reverse
    return found[...].T if "MATLAB_class" in found.attrs else found


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
    """The images with the axis that counts them first, which in MATLAB's is the last."""
    shapes = {part: tuple(array.shape) for part, (_, array) in images.items()}
    first, last = (all(shape and shape[at] == len(labels[p]) for p, shape in shapes.items()) for at in (0, -1))
    if first or not last:
        return images
    return {part: (what, np.moveaxis(np.asarray(array[...]), -1, 0)) for part, (what, array) in images.items()}


def line_up(what, array, count, channels):
    """(`count` images, the axis of their channels: 1, 3, or None of gray ones)."""
    shape = tuple(array.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise BadInput(f"{what} is {shape}; right is N x H x W, N x C x H x W or N x H x W x C")
    if shape[0] != count:
        raise BadInput(f"{what} holds {shape[0]} images, and there are {count} labels; right is one of each")
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
