"""The reader of the HDF5 file of a data set of images.

Images are memory-mapped, so that the ranks of a node share one copy in the page cache.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from ..errors import BadInput
from .arrays import LAYOUT, channel_axis
from .hdf5 import Reader, read, stored
from .preprocess import Preprocessing
from .sources import SOURCES


class Part(NamedTuple):
    """Images, uint8 (N, C, H, W), labels, int64 (N,), and how an image becomes the network's input."""

    images: np.ndarray
    labels: np.ndarray
    preprocess: Preprocessing

    def __len__(self):
        return len(self.labels)

    def gather(self, indices):
        """Images as they are stored, uint8 (len(indices), C, H, W), and labels, as tensors."""
        return torch.from_numpy(self.images[indices]), torch.from_numpy(self.labels[indices])


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
    data = read(ImageReader, path, name, checksum, copy, preprocessing=preprocessing)
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


class ImageReader(Reader):
    """Of images and labels."""

    def read(self, preprocessing):
        """The DataSet. Raises BadInput."""
        if "vocabulary" in self._file.attrs and "classes" not in self._file.attrs:
            raise BadInput(
                f"{self._path} holds the tokens of a text, not images; give a file of images, or train with "
                "--task.name language"
            )
        name, classes = self.named_count("classes")
        if name in SOURCES and classes != SOURCES[name][1]:
            raise self.bad(f"{name} has {SOURCES[name][1]} classes, not {classes}")
        parts = [self._part(group, classes) for group in ("train", "test")]
        (train, labels), (test, _) = parts
        if train.shape[1:] != test.shape[1:]:
            raise self.bad(f"images of train {train.shape[1:]} and test {test.shape[1:]} differ")
        if classes > len(labels):
            raise self.bad(f"{len(labels)} training images cannot be of {classes} classes")
        preprocess = Preprocessing(preprocessing, self._file, self.again)
        stands_for = checksum_of([name, classes, self._file.attrs.get("checksum")], parts)
        return DataSet(name, classes, *(Part(*part, preprocess) for part in parts), stands_for)

    def _part(self, group, classes):
        """Images, memory-mapped, and labels of one part."""
        images, labels = (self.dataset(f"{group}/{name}") for name in ("images", "labels"))
        self._check_images(f"{group}/images", images)
        if images.size == 0:
            raise self.bad(f"{group}/images of shape {images.shape} holds no image")
        mapped = self.mapped(images)
        # before they are read: a damaged file may claim more of them than the memory holds
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise self.bad(f"{group}/labels must be int64 {images.shape[:1]}; it is {labels.dtype} {labels.shape}")
        labels = labels[...]
        if labels.min() < 0 or labels.max() >= classes:
            reach = f"{group}/labels reach from {labels.min()} to {labels.max()}"
            raise self.bad(f"{reach}; {classes} classes allow 0 to {classes - 1}")
        return mapped, labels

    def _check_images(self, what, images):
        """Raises BadInput where they are not uint8, N x C x H x W, in one piece."""
        shape = images.shape or ()
        if images.dtype != np.uint8 or len(shape) != 4 or images.chunks or images.compression:
            raise self.bad(f"{what} must be uint8, {LAYOUT}, contiguous; it is {stored(images)}")
        # of no file but prepare's, where the user was asked
        if self._file.attrs.get("layout") != LAYOUT and channel_axis(shape) != 1:
            which = "N x H x W x C" if channel_axis(shape) else "of channels that cannot be told from height and width"
            raise self.bad(f"{what} must be uint8, {LAYOUT}, contiguous; it is {shape}, {which}")
