"""Apptainer's definition files, as it reads them: a header of `Key: value`, then sections that begin with %name."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEFINITIONS = sorted((ROOT / "containers").glob("*.def"))


def read(path):
    """({key: value} of the header, {name: text} of the sections). Raises ValueError for a line that is neither."""
    head, *sections = re.split(r"^%(\w+)[ \t]*\n", Path(path).read_text(), flags=re.MULTILINE)
    header = {}
    for line in head.splitlines():
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r"(\w+): (\S+)", line)
            if found is None:
                raise ValueError(f"{path}: {line!r} is no line of a header")
            header[found[1]] = found[2]
    return header, dict(zip(sections[::2], sections[1::2], strict=True))


def files(sections):
    """(source, place in the image) of %files."""
    return [
        (ROOT / source, place) for source, place in (line.split() for line in sections["files"].split("\n") if line)
    ]


def copy_files(sections, tree):
    """Do what %files says, in a folder that is the image."""
    for source, place in files(sections):
        target = tree / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
