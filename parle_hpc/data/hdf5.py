"""What the readers of prepared HDF5 files share: how one is opened, its checks, and what is said of it."""

import math
import os
import shlex
from pathlib import Path

import h5py
import numpy as np

from ..errors import BadInput
from .advice import PREPARE, UNLOCK, anew, convert, default_path, is_known, make, near_miss
from .sources import SOURCES


def read(reader, path, name=None, checksum=None, copy="", **options):
    """What `reader`, a class over Reader, finds in the file of the data set `name`; None: whichever it holds.

    checksum: that it must have. copy: of the file, which is read in its place. options: of the reader's `read`.

    Raises BadInput where the file is missing, not HDF5 or torn, or holds another set than it should.
    """
    path = Path(path)
    if not copy and not os.path.isfile(path):
        raise BadInput(f"{path}: {_no_file(path, name or 'NAME', reader.text)}")
    try:
        # on shared file systems a lock fails with errno 11 or 37; nobody writes these files
        with h5py.File(copy or path, "r", locking=False) as file:
            data = reader(path, file, name).read(**options)
    except BadInput:
        raise
    # h5py has no error of its own for a damaged file
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise BadInput(f"{path} {_not_hdf5(path, name or 'NAME', error, Path(copy or path), reader.text)}") from None
    if name not in (None, data.name):
        raise BadInput(
            f"{path} holds {data.name}, not {name}; give {name}'s file, or train with --data.name {data.name}"
        )
    if checksum not in (None, data.checksum):
        raise BadInput(
            f"{path} holds another data set (checksum {data.checksum}) than it should ({checksum}); give the "
            "right one's file by --data.path"
        )
    return data


def _no_file(path, name, text):
    """That a file is not there, and what makes it."""
    if path.is_dir():
        inside = path / f"{name}.h5"
        return f"is a folder; give --data.path {inside}" + (
            "" if inside.exists() else f", made with {make(name, inside, text)}"
        )
    own = "" if is_known(name) else " from your own"
    return f"no such data file; {near_miss(name, path.parent)}make it{own} with {make(name, path, text)}"


def _not_hdf5(path, name, error, read, text):
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
        return f"{torn}; {anew(name, path, text)}"
    published = name in SOURCES and name != "digits" and not text
    if not published or start.startswith((b"\x93NUMPY", b"MATLAB")) or path.suffix.lower() == ".npz":
        return f"{torn}; {convert(path, name, text=text)}"
    source, made = shlex.quote(str(path)), default_path(name)
    return f"{torn}; convert it with {PREPARE} {name} --source {source}, and give --data.path {made}"


class Reader:
    """The open HDF5 file of a data set, whose faults are told with the command that mends them.

    Args:
        path: of the file, as messages name it, of which `file` may be a copy.
        name: of the set that it should be, or None.

    Its `read`, of the classes over it, gives what the file holds, with `name` and `checksum`.

    Attributes:
        text: whether it is a text's tokens, or images.
        again: the advice that ends a message.
    """

    text = False

    def __init__(self, path, file, name):
        self._path, self._file = path, file
        found = file.attrs.get("name")
        found = found if isinstance(found, str) else None
        # prepare alone writes it
        self._prepared = "checksum" in file.attrs
        by_hand = not self._prepared and not self.text
        self.again = convert(path, found, name) if by_hand else anew(found or name or "NAME", path, self.text)

    def bad(self, what):
        """The BadInput that says so of this file."""
        return BadInput(f"{self._path}: {what}; {self.again}")

    def named_count(self, key):
        """The attributes `name` and `key`, a positive integer."""
        for attribute in ("name", key):
            if attribute not in self._file.attrs:
                by_hand = "" if self._prepared else ", prepare has not made it"
                raise self.bad(f"attribute {attribute!r} is missing{by_hand}")
        name = self._file.attrs["name"]
        if not isinstance(name, str):
            raise self.bad("attribute 'name' must be a text")
        return name, self.count(key)

    def count(self, key):
        """An attribute that is a positive integer."""
        value = self._file.attrs.get(key)
        if not isinstance(value, np.integer) or value < 1:
            raise self.bad(f"attribute {key!r} must be a positive integer")
        return int(value)

    def dataset(self, name):
        """The data set `name`, of which all lies in this file."""
        file, group = self._file, name.rpartition("/")[0]
        links = [file.get(part, getlink=True) for part in (group, name) if isinstance(file.get(group), h5py.Group)]
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise self.bad(f"data set {name!r} is missing")
        if not all(isinstance(link, h5py.HardLink) for link in links) or found.external or found.is_virtual:
            raise self.bad(f"{name} lies elsewhere, and must be in this file")
        return found

    def mapped(self, found):
        """A data set that is not empty, memory-mapped."""
        offset, size = found.id.get_offset(), math.prod(found.shape) * found.dtype.itemsize
        if offset is None or offset + size > os.path.getsize(self._file.filename):
            raise self.bad(f"{found.name.lstrip('/')} is truncated")
        return np.memmap(self._file.filename, found.dtype, "r", offset, found.shape)


def stored(found):
    """How an HDF5 data set lies in its file, where not in one piece, then its type and shape."""
    odd = ", ".join(word for word in ("chunked" if found.chunks else "", found.compression or "") if word)
    return f"{odd}{' ' if odd else ''}{found.dtype} {found.shape}"
