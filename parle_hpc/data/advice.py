"""The commands that make a data set's file, as a message gives them: each knows the set, and works."""

import difflib
import re
import shlex
from pathlib import Path

from ..errors import possible_name
from .sources import SOURCES

PREPARE = "python -m parle_hpc.data.prepare"
FOLDER = Path("data")
UNLOCK = "cannot be locked here, which HDF5_USE_FILE_LOCKING asks for; export HDF5_USE_FILE_LOCKING=FALSE"


def default_path(name):
    """Where prepare puts a data set, and training looks for it, if no path is given."""
    return FOLDER / f"{name}.h5"


def near_miss(name, folder=FOLDER):
    """The question whether a known set was meant, or one of those in a folder; nothing where none is near."""
    plain = {
        re.sub("[^a-z0-9]", "", other.lower()): other for other in (*(p.stem for p in folder.glob("*.h5")), *SOURCES)
    }
    close = difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, n=1, cutoff=0.75)
    meant = plain[close[0]] if close else name
    return "" if meant == name or name in SOURCES else f"did you mean {meant}? else "


def make(name, path):
    """The command that makes the file of a set, the user's own from a FILE that only the user knows."""
    source = "" if name in SOURCES else "--source FILE "
    return f"{PREPARE} {name} {source}--out {shlex.quote(str(path))}"


def anew(name, path):
    """What to do where a file that prepare made is damaged."""
    return f"prepare it anew with {make(name, path)}"


def convert(path, *names):
    """What to do with a file of the user's own that the trainer does not take as it is.

    names: what it may be called, the best first; None, or a known set's, is passed over.
    """
    own = [name for name in (*names, Path(path).stem) if name and name not in SOURCES and is_name(name)]
    name = own[0] if own else "mine"
    out, option = default_path(name), ""
    if Path(path).absolute() == out.absolute():
        out = Path(path).with_name(f"{name}-prepared.h5")
        option = f" --out {shlex.quote(str(out))}"
    command = f"{PREPARE} {name} --source {shlex.quote(str(path))}{option}"
    return f"convert it with {command}, and train with --data.name {name} --data.path {shlex.quote(str(out))}"


def is_name(text):
    """Whether a set can have this name."""
    try:
        return bool(possible_name(text))
    except ValueError:
        return False
