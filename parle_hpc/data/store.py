"""The reader of a data set's HDF5 file.

Images are memory-mapped, so that the ranks of a node share one copy in the page cache.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..failure import BadInput

# on shared file systems HDF5's lock fails with errno 11 or 37; nobody writes these files
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py

from .preprocess import Preprocessing
from .sources import SOURCES

FOLDER = Path("data")


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
    """The train and test parts of a data set, and its name and number of classes."""

    name: str
    classes: int
    train: Part
    test: Part


def default_path(name):
    """Where prepare puts a data set, and training looks for it, if no path is given."""
    return FOLDER / f"{name}.h5"


def open_dataset(path, name="NAME", preprocessing="none", samples=None):
    """Read and check the file of the data set `name`.

    preprocessing is a kind that Preprocessing knows. With `samples` the training set is its first so many images.

    Raises BadInput where the file is missing, not HDF5, torn, lacks a group or what the preprocessing needs, or holds
    labels outside its classes.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such data file; make it with python -m parle_hpc.data.prepare {name} --out {path}")
    try:
        with h5py.File(path, "r") as file:
            data = _read(path, file, preprocessing)
    except OSError as error:
        raise BadInput(f"{path} is not a complete HDF5 file ({error}); prepare it anew") from None
    if data.name != name and {data.name, name} <= set(SOURCES):
        raise BadInput(f"{path} holds {data.name}, not {name}; give --data.name {data.name}, or the file of {name}")
    if samples is None:
        return data
    if samples > len(data.train):
        raise BadInput(f"--data.samples {samples}: {path} has {len(data.train)} training images, take at most that")
    images, labels, preprocess = data.train
    return data._replace(train=Part(images[:samples], labels[:samples], preprocess))


def _read(path, file, preprocessing):
    for name in ("name", "classes"):
        if name not in file.attrs:
            raise BadInput(
                f"{path}: attribute {name!r} is missing; prepare it anew with python -m parle_hpc.data.prepare"
            )
    classes = int(file.attrs["classes"])
    preprocess = Preprocessing(preprocessing, file)
    parts = [_read_part(path, file, group, classes, preprocess) for group in ("train", "test")]
    if parts[0].images.shape[1:] != parts[1].images.shape[1:]:
        raise BadInput(
            f"{path}: images of train {parts[0].images.shape[1:]} and test {parts[1].images.shape[1:]} differ"
        )
    return DataSet(str(file.attrs["name"]), classes, *parts)


def _read_part(path, file, group, classes, preprocess):
    for name in (f"{group}/images", f"{group}/labels"):
        if not isinstance(file.get(name), h5py.Dataset):
            raise BadInput(
                f"{path}: data set {name!r} is missing; prepare it anew with python -m parle_hpc.data.prepare"
            )
    images, labels = file[f"{group}/images"], file[f"{group}/labels"][...]
    if images.dtype != np.uint8 or images.ndim != 4 or images.chunks is not None:
        raise BadInput(
            f"{path}: {group}/images must be uint8, N x C x H x W, contiguous; it is {images.dtype} {images.shape}"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise BadInput(
            f"{path}: {group}/labels must be int64 of shape {images.shape[:1]}; it is {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise BadInput(
            f"{path}: {group}/labels reach from {labels.min()} to {labels.max()}; "
            f"{classes} classes allow 0 to {classes - 1}"
        )
    offset, size = images.id.get_offset(), images.size
    if offset is None or offset + size > os.path.getsize(path):
        raise BadInput(f"{path}: {group}/images is truncated; prepare it anew")
    return Part(np.memmap(path, np.uint8, "r", offset, images.shape), labels, preprocess)
