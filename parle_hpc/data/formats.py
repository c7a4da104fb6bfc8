"""The raw formats in which the data sets are published, from bytes to arrays.

Every reader returns images, uint8 (N, C, H, W), and labels, int64 (N,), and raises BadInput with the name of the file
where it is torn or not what it should be.
"""

import io
import pickle
import pickletools
import warnings

import numpy as np

from ..errors import BadInput
from .arrays import integers, written

IDX_IMAGES, IDX_LABELS = 0x803, 0x801
CIFAR_SHAPE = (3, 32, 32)


def read_idx(raw, magic, path):
    """The array in the bytes of an IDX file (MNIST), whose magic number must be `magic`."""
    found = int.from_bytes(raw[:4], "big")
    if len(raw) < 4 or found != magic:
        raise BadInput(f"{path} is not the IDX file it should be: magic number {found:#06x}, right is {magic:#06x}")
    axes = magic & 0xFF
    header = 4 + 4 * axes
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, min(header, len(raw)), 4)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise BadInput(f"{path} is torn: {len(raw)} bytes, its header promises {expected}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_cifar_binary(raw, label_bytes, path):
    """CIFAR's binary version: records of `label_bytes` labels, of which the last is the class, and an image."""
    record = label_bytes + int(np.prod(CIFAR_SHAPE))
    if not raw or len(raw) % record:
        raise BadInput(
            f"{path} is torn or no CIFAR file: {len(raw)} bytes are not a whole number of {record}-byte records"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, *CIFAR_SHAPE), records[:, label_bytes - 1].astype(np.int64)


def read_cifar_python(raw, label_key, path):
    """CIFAR's python version: a pickled dictionary with `data` and the labels under `label_key`."""
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            # the table of what was put there is as long as the largest number in the file
            if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(raw):
                raise pickle.UnpicklingError(f"{opcode.name} {argument} in a file of {len(raw)} bytes")
        table = CifarUnpickler(io.BytesIO(raw), encoding="bytes").load()
        table = {key.decode() if isinstance(key, bytes) else key: value for key, value in table.items()}
        images, labels = np.asarray(table["data"]), np.asarray(table[label_key])
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise BadInput(f"{path} is not CIFAR's python version ({type(error).__name__}: {error})") from None
    width = int(np.prod(CIFAR_SHAPE))
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != width or not len(images):
        raise BadInput(f"{path}: data must be uint8, N x {width}; it is {images.dtype} {images.shape}")
    return images.reshape(-1, *CIFAR_SHAPE), integers(labels, len(images), f"{path}: {label_key}")


class CifarUnpickler(pickle.Unpickler):
    """Knows the few names that pickled arrays and numbers need, and nothing else; none of them is numpy's own."""

    def find_class(self, module, name):
        # NumPy 1 has numpy.core
        known = KNOWN.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is not None:
            return known
        raise pickle.UnpicklingError(f"{module}.{name} has no business in a data set")


def _latin1(text, encoding):
    """How Python 3 pickles bytes for Python 2."""
    return text.encode("latin1")


class PickledType:
    """The numpy.dtype of a pickled array, by its name and the byte order that its state gives."""

    def __init__(self, name, *_):
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """The pickled array itself: its state is (version, shape, type, whether it is in Fortran's order, bytes)."""

    def __init__(self, *_):
        self._array = None

    def __setstate__(self, state):
        _, shape, kind, fortran, content = state
        self._array = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype=None, copy=None):
        return self._array


def _scalar(kind, content):
    """How NumPy pickles a number."""
    return np.frombuffer(content, kind.dtype)[0]


def _frombuffer(content, kind, shape, order):
    """How NumPy pickles an array from protocol 5 on."""
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


KNOWN = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): PickledType,
    ("numpy", "dtype"): PickledType,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


def read_svhn(raw, path):
    """SVHN's cropped digits, a MATLAB file: X, uint8 (32, 32, 3, N), and y, 1 to 10, where 10, or 0, is zero."""
    try:
        # since 7.3 they are HDF5, which has the axes in reverse
        table = _hdf5(raw) if raw[:10] == b"MATLAB 7.3" else _matlab(raw)
        images, labels = np.asarray(table["X"]), np.asarray(table["y"])
    except KeyError as error:
        raise BadInput(f"{path} lacks {error}: it is not SVHN's cropped digits (format 2)") from None
    except Exception as error:  # scipy has no error of its own for a torn file
        raise BadInput(f"{path} cannot be read as a MATLAB file ({type(error).__name__}: {error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise BadInput(f"{path}: X must be uint8, 32 x 32 x 3 x N; it is {images.dtype} {images.shape}")
    labels = integers(labels, images.shape[3], f"{path}: y")
    if labels.min() < 0 or labels.max() > 10 or labels.max() - labels.min() > 9:
        raise BadInput(f"{path}: y reaches from {labels.min()} to {labels.max()}, right is 1 to 10, or 0 to 9")
    return images.transpose(3, 2, 0, 1), labels % 10


def _matlab(raw):
    from scipy.io import loadmat

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's words for what it cannot read
        return loadmat(io.BytesIO(raw), variable_names=["X", "y"])


def _hdf5(raw):
    import h5py

    with h5py.File(io.BytesIO(raw), "r") as file:
        return {name: file[name][...].T for name in ("X", "y") if name in file and written(file[name])}
