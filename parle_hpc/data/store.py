"""The reader of a data set's HDF5 file.

Images are memory-mapped, so that the ranks of a node share one copy in the page cache.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import BadInput

# on shared file systems HDF5's lock fails with errno 11 or 37; nobody writes these files
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py

from .preprocess import Preprocessing
from .sources import SOURCES

FOLDER = Path("data")
AGAIN = "prepare it anew with python -m parle_hpc.data.prepare"


class Part(NamedTuple):
    """Images, uint8 (N, C, H, W), labels, int64 (N,), and how an image becomes the network's input."""

    images: np.ndarray
    labels: np.ndarray
    preprocess: Preprocessing

    def __len__(self):
        return len(self.labels)

    def batch(self, indices, device):
        """Images as the network sees them, float32 (len(indices), C, H, W), and labels, on the device."""
        images, labels = torch.from_numpy(self.images[indices]), torch.from_numpy(self.labels[indices])
        if device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        return self.preprocess(images), labels


class DataSet(NamedTuple):
    """The train and test parts of a data set, its name and number of classes, and a checksum that stands for all."""

    name: str
    classes: int
    train: Part
    test: Part
    checksum: str


def default_path(name):
    """Where prepare puts a data set, and training looks for it, if no path is given."""
    return FOLDER / f"{name}.h5"


def open_dataset(path, name="NAME", preprocessing="none", samples=None, checksum=None):
    """Read and check the file of the data set `name`.

    preprocessing is a kind that Preprocessing knows. With `samples` the training set is its first so many images.
    checksum: that it must have.

    Raises BadInput where the file is missing, not HDF5, torn, lacks a group or what the preprocessing needs, holds
    labels outside its classes, or another data set.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such data file; make it with python -m parle_hpc.data.prepare {name} --out {path}")
    try:
        with h5py.File(path, "r") as file:
            data = _read(path, file, preprocessing)
    except BadInput:
        raise
    # h5py has no error of its own for a damaged file
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise BadInput(f"{path} is not a complete HDF5 file ({error}); prepare it anew") from None
    if data.name != name and {data.name, name} <= set(SOURCES):
        raise BadInput(f"{path} holds {data.name}, not {name}; give --data.name {data.name}, or the file of {name}")
    if checksum not in (None, data.checksum):
        raise BadInput(
            f"{path} holds another data set (checksum {data.checksum}) than it should (--data.checksum {checksum}); "
            "give the right one's file by --data.path"
        )
    if samples is None:
        return data
    if samples > len(data.train):
        raise BadInput(f"--data.samples {samples}: {path} has {len(data.train)} training images, take at most that")
    images, labels, preprocess = data.train
    return data._replace(train=Part(images[:samples], labels[:samples], preprocess))


def _read(path, file, preprocessing):
    for name in ("name", "classes"):
        if name not in file.attrs:
            raise BadInput(f"{path}: attribute {name!r} is missing; {AGAIN}")
    name, classes = file.attrs["name"], file.attrs["classes"]
    if not isinstance(name, str):
        raise BadInput(f"{path}: attribute 'name' must be a text; {AGAIN}")
    if not isinstance(classes, np.integer) or classes < 1:
        raise BadInput(f"{path}: attribute 'classes' must be a positive integer; {AGAIN}")
    if name in SOURCES and classes != SOURCES[name][1]:
        raise BadInput(f"{path}: {name} has {SOURCES[name][1]} classes, not {classes}; {AGAIN}")
    parts = [_read_part(path, file, group, int(classes)) for group in ("train", "test")]
    (train, labels), (test, _) = parts
    if train.shape[1:] != test.shape[1:]:
        raise BadInput(f"{path}: images of train {train.shape[1:]} and test {test.shape[1:]} differ; {AGAIN}")
    if classes > len(labels):
        raise BadInput(f"{path}: {len(labels)} training images cannot be of {classes} classes; {AGAIN}")
    preprocess = Preprocessing(preprocessing, file)
    stands_for = checksum_of([name, classes, file.attrs.get("checksum")], parts)
    return DataSet(name, int(classes), *(Part(*part, preprocess) for part in parts), stands_for)


def checksum_of(facts, parts):
    """16 hexadecimal digits of what a data set says of itself, its shapes and its labels."""
    digest = hashlib.blake2b(repr([str(fact) for fact in facts]).encode(), digest_size=8)
    for images, labels in parts:
        digest.update(repr(images.shape).encode())
        digest.update(labels.tobytes())
    return digest.hexdigest()


def _dataset(path, file, name):
    """The data set `name`, of which all lies in this file."""
    group = name.rpartition("/")[0]
    links = [file.get(part, getlink=True) for part in (group, name) if isinstance(file.get(group), h5py.Group)]
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise BadInput(f"{path}: data set {name!r} is missing; {AGAIN}")
    if not all(isinstance(link, h5py.HardLink) for link in links) or found.external or found.is_virtual:
        raise BadInput(f"{path}: {name} lies elsewhere, and must be in this file; {AGAIN}")
    return found


def _read_part(path, file, group, classes):
    """Images, memory-mapped, and labels of one part."""
    images, labels = (_dataset(path, file, f"{group}/{name}") for name in ("images", "labels"))
    if images.dtype != np.uint8 or len(images.shape or ()) != 4 or images.chunks is not None:
        raise BadInput(
            f"{path}: {group}/images must be uint8, N x C x H x W, contiguous; it is {images.dtype} {images.shape}"
        )
    offset, size = images.id.get_offset(), math.prod(images.shape)
    if size == 0:
        raise BadInput(f"{path}: {group}/images of shape {images.shape} holds no image; {AGAIN}")
    if offset is None or offset + size > os.path.getsize(path):
        raise BadInput(f"{path}: {group}/images is truncated; {AGAIN}")
    # before they are read: a damaged file may claim more of them than the memory holds
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise BadInput(
            f"{path}: {group}/labels must be int64 of shape {images.shape[:1]}; it is {labels.dtype} {labels.shape}"
        )
    labels = labels[...]
    if labels.min() < 0 or labels.max() >= classes:
        raise BadInput(
            f"{path}: {group}/labels reach from {labels.min()} to {labels.max()}; "
            f"{classes} classes allow 0 to {classes - 1}"
        )
    return np.memmap(path, np.uint8, "r", offset, images.shape), labels
