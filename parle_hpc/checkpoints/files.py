"""Checkpoints on disk: complete and intact, or not there at all.

    OUT/checkpoints/round-000050/0.h5 ...      one file a rank, HDF5 with fletcher32 checksums, no pickle
    OUT/checkpoints/round-000050/manifest.json written last: what the files must be, to the bit

A rank's file has a group `replica`, with this rank's parts of what its replica has (attributes: start, and size of the
whole), a group `rank` with what is its own, and an attribute `facts`, JSON. Every file is written under another name,
forced to disk, then renamed; a checkpoint is complete once its manifest is there. Replicas write in parallel, and the
ranks of one share the work.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..cluster.durable import fill, write_whole

FORMAT = 1
MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A checkpoint that is not what was written; the message names the file."""


class Piece(NamedTuple):
    """A part of a vector of `size` elements: `values`, a NumPy array of one dimension, from `start` on."""

    values: np.ndarray
    start: int
    size: int


def write(folder, rank, pieces, own, facts):
    """Write a rank's file; what the manifest says of it.

    Args:
        folder: of the checkpoint, which exists.
        pieces: {name: Piece} of the replica.
        own: {name: NumPy array} of the rank.
        facts: what JSON can hold.

    Raises OSError where the disk is full or gone; then nothing is left of the file.
    """
    path = folder / f"{rank}.h5"
    # in memory first: HDF5 cannot close a file whose disk is full, and holds the interpreter while it waits for one
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["facts"] = json.dumps(facts)
        for name, piece in pieces.items():
            dataset = fill(file, f"replica/{name}", piece.values)
            dataset.attrs.update(start=piece.start, size=piece.size)
        for name, values in own.items():
            fill(file, f"rank/{name}", np.atleast_1d(values))
    content = memory.getbuffer()
    write_whole(path, content)
    return {"name": path.name, "bytes": len(content), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}


def as_text(manifest):
    """A manifest as its file has it, with the checksum of its own text."""
    digest = hashlib.blake2b(json.dumps(manifest).encode(), digest_size=16)
    return json.dumps({**manifest, "blake2b": digest.hexdigest()}, indent=1)


def complete(folder, files, facts):
    """Write the manifest, which makes the checkpoint complete. Raises OSError."""
    write_whole(folder / MANIFEST, as_text({"format": FORMAT, "files": files, **facts}).encode())


def read_manifest(folder):
    """A complete checkpoint's manifest, None where there is none. Raises Damaged."""
    path = folder / MANIFEST
    try:
        text = path.read_text()
        manifest = json.loads(text)
        manifest.pop("blake2b")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    if as_text(manifest) != text:
        raise Damaged(f"{path} is not what was written")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def verify(folder, entry):
    """Raises Damaged where a file is not what the manifest's entry says."""
    path = folder / entry["name"]
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
            size = file.tell()
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if (size, digest.hexdigest()) != (entry["bytes"], entry["blake2b"]):
        raise Damaged(f"{path} is not what was written")


def folder_of(out, round):
    """The folder of the checkpoint after round `round`, counted from 0."""
    return Path(out) / "checkpoints" / f"round-{round + 1:06d}"


def folders(out):
    """The folders of a run's checkpoints, newest first, complete or not; of a checkpoint's folder itself, that one."""
    out = Path(out)
    if (out / MANIFEST).exists():
        return [out]
    return sorted((out / "checkpoints").glob("round-*"), reverse=True)


def prune(out, keep):
    """Remove all but the newest `keep` complete checkpoints and the one with the best validation score.

    What is incomplete goes too, where it is older than the newest complete one.
    """
    manifests = {}
    for folder in folders(out):
        try:
            manifests[folder] = read_manifest(folder)
        except Damaged:
            manifests[folder] = None
    whole = [folder for folder, manifest in manifests.items() if manifest is not None]
    scored = {folder: manifests[folder]["score"] for folder in whole if manifests[folder].get("score") is not None}
    lower = all(manifests[folder].get("lower_is_better", True) for folder in scored)
    best = (min if lower else max)(scored, key=scored.get, default=None)
    for folder in manifests:
        if folder not in [*whole[:keep], best] and whole and folder < whole[0]:
            # the manifest first: what is half removed must not look complete
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def put_away(out, last):
    """Before a run goes on after round `last` (None: from the start): nothing newer may be taken for its own.

    What is incomplete is removed, what is complete but damaged gets another name, damaged-round-NUMBER.
    """
    newest = "" if last is None else folder_of(out, last).name
    for folder in (Path(out) / "checkpoints").glob("round-*"):
        if folder.name <= newest:
            continue
        kept = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(kept if (folder / MANIFEST).exists() else folder, ignore_errors=True)
        if folder.exists():
            folder.rename(kept)


class Stored:
    """An intact checkpoint, to read from.

    Args:
        folder: of the checkpoint.
        manifest: its manifest.
    """

    def __init__(self, folder, manifest):
        self.folder, self.manifest = folder, manifest
        self.n, self.m = manifest["n"], manifest["m"]

    def _open(self, rank):
        return h5py.File(self.folder / f"{rank}.h5", "r", locking=False)

    def facts(self, rank):
        """The facts of a rank's file."""
        with self._open(rank) as file:
            return json.loads(file.attrs["facts"])

    def own(self, rank):
        """{name: array} of what was a rank's own."""
        with self._open(rank) as file:
            found = {}

            def take(name, item):
                if isinstance(item, h5py.Dataset):
                    found[name] = item[...]

            file["rank"].visititems(take)
            return found

    def replica(self, index):
        """{name: whole array} of a replica, put together from its ranks' pieces."""
        whole = {}
        for rank in range(index * self.m, (index + 1) * self.m):
            with self._open(rank) as file:
                for name, piece in file.get("replica", {}).items():
                    if name not in whole:
                        whole[name] = np.empty(piece.attrs["size"], piece.dtype)
                    start = piece.attrs["start"]
                    whole[name][start : start + piece.shape[0]] = piece[...]
        return whole
