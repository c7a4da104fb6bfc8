"""The commands that make a data set's file, as a message gives them: each knows the set, and works."""

import difflib
import re
import shlex
from pathlib import Path

from ..errors import possible_name
from .sources import SOURCES

PREPARE = "python -m parle_hpc.data.prepare"
FOLDER = Path("data")
TEXT, TOPICS = "text", "topics"  # what prepare calls any text, and the one that is built in
UNLOCK = "cannot be locked here, which HDF5_USE_FILE_LOCKING asks for; export HDF5_USE_FILE_LOCKING=FALSE"


def default_path(name):
    """Where prepare puts a data set, and training looks for it, if no path is given."""
    return FOLDER / f"{name}.h5"


def near_miss(name, folder=FOLDER):
    """The question whether a known set was meant, or one of those in a folder; nothing where none is near."""
    plain = {
        re.sub("[^a-z0-9]", "", other.lower()): other
        for other in (*(p.stem for p in folder.glob("*.h5")), *SOURCES, TOPICS)
    }
    close = difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, n=1, cutoff=0.75)
    meant = plain[close[0]] if close else name
    return "" if meant == name or is_known(name) else f"did you mean {meant}? else "


def is_known(name):
    """Whether a set needs no source of the user's: published, or built in."""
    return name in SOURCES or name == TOPICS


def make(name, path, text=False):
    """The command that makes the file of a set, the user's own from a FILE that only the user knows.

    text: whether it is a text.
    """
    source = "" if is_known(name) else "--source FILE "
    kind = TEXT if text and source else name
    return f"{PREPARE} {kind} {source}--out {shlex.quote(str(path))}"


def anew(name, path, text=False):
    """What to do where a file that prepare made is damaged."""
    return f"prepare it anew with {make(name, path, text)}"


def convert(path, *names, text=False):
    """What to do with a file of the user's own that the trainer does not take as it is.

    names: what it may be called, the best first; None, or a known set's, is passed over. text: whether it is a text.
    """
    own = [name for name in (*names, Path(path).stem) if name and not is_known(name) and is_name(name)]
    name = own[0] if own else "mine"
    out, option = default_path(name), ""
    if Path(path).absolute() == out.absolute():
        out = Path(path).with_name(f"{name}-prepared.h5")
        option = f" --out {shlex.quote(str(out))}"
    if text:
        option = f" --out {shlex.quote(str(out))}"
    command = f"{PREPARE} {TEXT if text else name} --source {shlex.quote(str(path))}{option}"
    return f"convert it with {command}, and train with --data.name {name} --data.path {shlex.quote(str(out))}"


def is_name(text):
    """Whether a set can have this name."""
    try:
        return bool(possible_name(text))
    except ValueError:
        return False
