"""A data set's HDF5 file as prepare writes it: complete, or not there at all."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import h5py

from ..errors import BadInput, say
from .advice import default_path


def output(name, out=None):
    """The path to write, `out` or the usual one. Raises BadInput where it is no file and cannot become one."""
    path = Path(out) if out else default_path(name)
    if not path.name or (os.path.lexists(path) and not os.path.isfile(path)):
        raise BadInput(f"--out {path}: is not a file, nor can become one; give the name of a file, such as {name}.h5")
    return path


def keep_apart(out, *sources):
    """Raises BadInput where the file to write is a source, or lies in one."""
    if os.path.exists(out) and any(
        os.path.exists(source) and os.path.samefile(source, p) for source in sources for p in (out, out.parent)
    ):
        raise BadInput(f"--out {out}: is the source itself, or in it; give another --out")


def write(path, name, checksum, fill, notes=()):
    """Have `fill(file)` write the HDF5 file of the data set `name`, and say the notes.

    The file is complete or not there at all, also when several processes make it at once. Its attributes are name and
    checksum, and what `fill` adds. Raises BadInput where it cannot be written.
    """
    # processes of two nodes may have one number
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # this version keeps checksums of all that is not images or tokens
        with h5py.File(partial, "w", libver="v110", locking=False) as file:
            file.attrs.update(name=name, checksum=checksum)
            fill(file)
        notes = [*notes, *replaced(path, checksum)]
        partial.replace(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}); give another --out") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    for note in notes:
        say(f"{name}: {note}")


def replaced(path, checksum):
    """What is to be said of a file that is written over, whose data came from a source of another checksum."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            before = file.attrs.get("checksum")
    except OSError:
        return []
    if before in (None, checksum):
        return []
    return [f"{path} held other data until now, which the runs that were trained on them will miss"]
