"""Files that were brought by hand: under the names, in the folders and in the packings in which people have them."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
from pathlib import Path

from ..errors import BadInput

UNPACKED = 1 << 29  # bytes; the largest of what is published packed, CIFAR, unpacks to 186 MB
PACKINGS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
ZIP = b"PK\3\4"
UNPACK = "unpack it, and give the folder as --source"
INSTEAD = {
    b"\x28\xb5\x2f\xfd": f"is packed by Zstandard; {UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"is packed by 7-Zip; {UNPACK}",
    b"Rar!": f"is packed by RAR; {UNPACK}",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file; git lfs pull brings it",
    b"<!doctype": "is a web page, which came in place of the file; fetch it again",
    b"<html": "is a web page, which came in place of the file; fetch it again",
}
DEPTH = 2  # folders below the one given: torchvision has MNIST/raw


def read(path):
    """The bytes of a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None


def unpack(raw, path):
    """The bytes inside, where `raw` is gzip, bzip2 or xz, at most UNPACKED; else as they are.

    Raises BadInput, also where it is something that comes in a file's place.
    """
    start = raw[:64].lstrip().lower()
    for magic, what in INSTEAD.items():
        if raw.startswith(magic) or start.startswith(magic):
            raise BadInput(f"{path} {what}")
    opener = next((opener for magic, opener in PACKINGS.items() if raw.startswith(magic)), None)
    if opener is None:
        return raw
    try:
        with opener(io.BytesIO(raw)) as file:
            content = file.read(UNPACKED + 1)
    except Exception as error:  # each packing has errors of its own
        raise BadInput(f"{path} cannot be unpacked ({error}); fetch it again") from None
    return within(len(content), path) and content


def within(size, path):
    """True where a file unpacks to no more than any data set does. Raises BadInput."""
    if size > UNPACKED:
        raise BadInput(f"{path} unpacks to more than {UNPACKED:,} bytes, which no data set does; fetch it again")
    return True


def plain(name):
    """A file's name without what unpackers, browsers and file systems change of it."""
    name = re.sub(r" ?\(\d+\)", "", name.lower())
    return re.sub(r"[._]", "-", re.sub(r"\.(gz|bz2|xz)$", "", name))


def members(raw, path, wanted):
    """The files in an archive, .zip or .tar, packed or not, that are `wanted`: {name: bytes}; nothing goes to disk.

    wanted: names without folders. Raises BadInput.
    """
    wanted = {plain(name): name for name in wanted}
    content = raw if raw.startswith(ZIP) else unpack(raw, path)
    try:
        if raw.startswith(ZIP):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                found = [(entry.filename, entry) for entry in archive.infolist() if not entry.is_dir()]
                found = {wanted[key]: entry for name, entry in found if (key := plain(Path(name).name)) in wanted}
                within(sum(entry.file_size for entry in found.values()), path)
                return {name: archive.read(entry) for name, entry in found.items()}
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            found = [(entry.name, entry) for entry in archive if entry.isfile()]
            found = {wanted[key]: entry for name, entry in found if (key := plain(Path(name).name)) in wanted}
            # a sparse member may promise more than there is
            if any(entry.size > len(content) for entry in found.values()):
                raise tarfile.ReadError("a file in it is longer than the archive")
            return {name: archive.extractfile(entry).read() for name, entry in found.items()}
    except BadInput:
        raise
    except Exception as error:  # a damaged archive raises whatever it likes
        raise BadInput(f"{path} is torn or no archive ({error}); fetch it again") from None


def below(folder):
    """The files in a folder and its folders, DEPTH below it, the nearest first. Raises BadInput."""

    def unreadable(error):
        raise BadInput(f"--source {folder}: {error.filename} cannot be read ({error.strerror})")

    found = []
    for place, folders, names in os.walk(folder, onerror=unreadable):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if depth < DEPTH and not name.startswith("."))
        # "._name" is what a Mac keeps beside a file
        paths = [Path(place) / name for name in sorted(names) if not name.startswith("._")]
        found += [(depth, path) for path in paths if path.is_file()]
    return [path for _, path in sorted(found)]


def place(source):
    """The path of --source, which must be a file or a folder."""
    path = Path(source)
    if not os.path.lexists(path):
        raise BadInput(f"--source {path}: no such file or folder")
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise BadInput(f"--source {path}: neither a file nor a folder that can be read")
    return path


def gather(source, wanted):
    """Where the files that are `wanted` are: {name: [(how it is called in a message, what reads its bytes)]}.

    source: a folder, an archive, or one of the files, beside which the others lie. Raises BadInput.
    """
    path, names = place(source), {plain(name): name for name in wanted}
    found = {name: [] for name in wanted}
    if path.is_file() and plain(path.name) not in names:
        for name, content in members(read(path), path, wanted).items():
            label = f"{path}: {name}"
            found[name].append((label, lambda content=content, label=label: unpack(content, label)))
        return found
    for file in below(path if path.is_dir() else path.parent):
        if plain(file.name) in names:
            found[names[plain(file.name)]].append((file, lambda file=file: unpack(read(file), file)))
    return found
