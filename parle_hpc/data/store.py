"""The reader of a data set's HDF5 file.

Images are memory-mapped, so that the ranks of a node share one copy in the page cache.
"""

import hashlib
import math
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch

from ..errors import BadInput
from .advice import PREPARE, UNLOCK, anew, convert, default_path, make, near_miss
from .arrays import LAYOUT, channel_axis
from .preprocess import Preprocessing
from .sources import SOURCES


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


def open_dataset(path, name=None, preprocessing="none", samples=None, checksum=None, copy=""):
    """Read and check the file of the data set `name`; None: whichever it holds.

    preprocessing is a kind that Preprocessing knows. With `samples` the training set is its first so many images.
    checksum: that it must have. copy: of the file, which is read in its place.

    Raises BadInput where the file is missing, not HDF5, torn, lacks a group or what the preprocessing needs, or holds
    another set, or images or labels that are not as prepare writes them.
    """
    path = Path(path)
    if not copy and not os.path.isfile(path):
        raise BadInput(f"{path}: {_no_file(path, name or 'NAME')}")
    try:
        # on shared file systems a lock fails with errno 11 or 37; nobody writes these files
        with h5py.File(copy or path, "r", locking=False) as file:
            data = Reader(path, file, name).read(preprocessing)
    except BadInput:
        raise
    # h5py has no error of its own for a damaged file
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise BadInput(f"{path} {_not_hdf5(path, name or 'NAME', error, Path(copy or path))}") from None
    if name not in (None, data.name):
        raise BadInput(
            f"{path} holds {data.name}, not {name}; give {name}'s file, or train with --data.name {data.name}"
        )
    if checksum not in (None, data.checksum):
        raise BadInput(
            f"{path} holds another data set (checksum {data.checksum}) than it should ({checksum}); give the "
            "right one's file by --data.path"
        )
    if samples is None:
        return data
    if samples > len(data.train):
        raise BadInput(f"--data.samples {samples}: {path} has {len(data.train)} training images, take at most that")
    images, labels, preprocess = data.train
    return data._replace(train=Part(images[:samples], labels[:samples], preprocess))


def checksum_of(facts, parts):
    """16 hexadecimal digits of what a data set says of itself, its shapes and its labels."""
    digest = hashlib.blake2b(repr([str(fact) for fact in facts]).encode(), digest_size=8)
    for images, labels in parts:
        digest.update(repr(images.shape).encode())
        digest.update(labels.tobytes())
    return digest.hexdigest()


def _no_file(path, name):
    """That a file is not there, and what makes it."""
    if path.is_dir():
        inside = path / f"{name}.h5"
        return f"is a folder; give --data.path {inside}" + (
            "" if inside.exists() else f", made with {make(name, inside)}"
        )
    own = "" if name in SOURCES else " from your own"
    return f"no such data file; {near_miss(name, path.parent)}make it{own} with {make(name, path)}"


def _not_hdf5(path, name, error, read):
    """What a file is that HDF5 cannot read, and what to do; nothing is advised that would write over another's."""
    try:
        with read.open("rb") as file:
            start = file.read(10)
    except OSError as denied:
        return f"cannot be read ({denied.strerror})"
    if "unable to lock" in str(error):
        return UNLOCK
    torn = f"is not a complete HDF5 file ({error})"
    if path.suffix.lower() in (".h5", ".hdf5"):
        return f"{torn}; {anew(name, path)}"
    published = name in SOURCES and name != "digits"
    if not published or start.startswith((b"\x93NUMPY", b"MATLAB")) or path.suffix.lower() == ".npz":
        return f"{torn}; {convert(path, name)}"
    source, made = shlex.quote(str(path)), default_path(name)
    return f"{torn}; convert it with {PREPARE} {name} --source {source}, and give --data.path {made}"


class Reader:
    """The open HDF5 file of a data set, whose faults are told with the command that mends them.

    Args:
        path: of the file, as messages name it, of which `file` may be a copy.
        name: of the set that it should be, or None.
    """

    def __init__(self, path, file, name):
        self._path, self._file = path, file
        found = file.attrs.get("name")
        found = found if isinstance(found, str) else None
        # prepare alone writes it
        self._prepared = "checksum" in file.attrs
        self._again = anew(found or name or "NAME", path) if self._prepared else convert(path, found, name)

    def read(self, preprocessing):
        """The DataSet. Raises BadInput."""
        name, classes = self._attributes()
        if name in SOURCES and classes != SOURCES[name][1]:
            raise self._bad(f"{name} has {SOURCES[name][1]} classes, not {classes}")
        parts = [self._part(group, int(classes)) for group in ("train", "test")]
        (train, labels), (test, _) = parts
        if train.shape[1:] != test.shape[1:]:
            raise self._bad(f"images of train {train.shape[1:]} and test {test.shape[1:]} differ")
        if classes > len(labels):
            raise self._bad(f"{len(labels)} training images cannot be of {classes} classes")
        preprocess = Preprocessing(preprocessing, self._file, self._again)
        stands_for = checksum_of([name, classes, self._file.attrs.get("checksum")], parts)
        return DataSet(name, int(classes), *(Part(*part, preprocess) for part in parts), stands_for)

    def _bad(self, what):
        return BadInput(f"{self._path}: {what}; {self._again}")

    def _attributes(self):
        for name in ("name", "classes"):
            if name not in self._file.attrs:
                by_hand = "" if self._prepared else ", prepare has not made it"
                raise self._bad(f"attribute {name!r} is missing{by_hand}")
        name, classes = self._file.attrs["name"], self._file.attrs["classes"]
        if not isinstance(name, str):
            raise self._bad("attribute 'name' must be a text")
        if not isinstance(classes, np.integer) or classes < 1:
            raise self._bad("attribute 'classes' must be a positive integer")
        return name, classes

    def _dataset(self, name):
        """The data set `name`, of which all lies in this file."""
        file, group = self._file, name.rpartition("/")[0]
        links = [file.get(part, getlink=True) for part in (group, name) if isinstance(file.get(group), h5py.Group)]
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise self._bad(f"data set {name!r} is missing")
        if not all(isinstance(link, h5py.HardLink) for link in links) or found.external or found.is_virtual:
            raise self._bad(f"{name} lies elsewhere, and must be in this file")
        return found

    def _part(self, group, classes):
        """Images, memory-mapped, and labels of one part."""
        images, labels = (self._dataset(f"{group}/{name}") for name in ("images", "labels"))
        self._check_images(f"{group}/images", images)
        offset, size = images.id.get_offset(), math.prod(images.shape)
        if size == 0:
            raise self._bad(f"{group}/images of shape {images.shape} holds no image")
        if offset is None or offset + size > os.path.getsize(self._file.filename):
            raise self._bad(f"{group}/images is truncated")
        # before they are read: a damaged file may claim more of them than the memory holds
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise self._bad(f"{group}/labels must be int64 {images.shape[:1]}; it is {labels.dtype} {labels.shape}")
        labels = labels[...]
        if labels.min() < 0 or labels.max() >= classes:
            reach = f"{group}/labels reach from {labels.min()} to {labels.max()}"
            raise self._bad(f"{reach}; {classes} classes allow 0 to {classes - 1}")
        return np.memmap(self._file.filename, np.uint8, "r", offset, images.shape), labels

    def _check_images(self, what, images):
        """Raises BadInput where they are not uint8, N x C x H x W, in one piece."""
        shape = images.shape or ()
        stored = ", ".join(word for word in ("chunked" if images.chunks else "", images.compression or "") if word)
        if images.dtype != np.uint8 or len(shape) != 4 or stored:
            stored += " " if stored else ""
            raise self._bad(f"{what} must be uint8, {LAYOUT}, contiguous; it is {stored}{images.dtype} {images.shape}")
        # of no file but prepare's, where the user was asked
        if self._file.attrs.get("layout") != LAYOUT and channel_axis(shape) != 1:
            which = "N x H x W x C" if channel_axis(shape) else "of channels that cannot be told from height and width"
            raise self._bad(f"{what} must be uint8, {LAYOUT}, contiguous; it is {shape}, {which}")
