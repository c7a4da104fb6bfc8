"""Checkpoints on disk: what is read is what was written, and what was damaged is never taken for good."""

import errno
import os
import random
import stat

import numpy as np
import pytest
from helpers.replicas import Alone

from parle_hpc.checkpoints import files
from parle_hpc.checkpoints.files import (
    Damaged,
    Piece,
    Stored,
    complete,
    folder_of,
    folders,
    prune,
    put_away,
    read_manifest,
)
from parle_hpc.checkpoints.resume import find
from parle_hpc.cluster.durable import force_folder


def vector(replica, round):
    return np.random.default_rng([replica, round]).normal(size=1001).astype(np.float32)


def save(out, round, n=2, m=2, score=None, manifest=True, lower=True):
    """A checkpoint of n x m ranks, each with its part of its replica's x and v."""
    folder = folder_of(out, round)
    folder.mkdir(parents=True)
    entries = []
    for rank in range(n * m):
        a, b = divmod(rank, m)
        part = -(-1001 // m)
        values = vector(a, round)
        pieces = {name: Piece(values[b * part : (b + 1) * part], b * part, 1001) for name in ("x", "v")}
        own = {"buffers/bn.mean": values[:7] + b, "buffers/count": np.array(rank), "random/none": np.empty(0)}
        entries.append(files.write(folder, rank, pieces, own, {"rank": rank, "lr": [0.1 / 3]}))
    if manifest:
        complete(folder, entries, {"round": round, "n": n, "m": m, "score": score, "lower_is_better": lower})
    return folder


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (1, 3)])
def test_what_was_written_is_read(tmp_path, n, m):
    folder = save(tmp_path, 4, n, m)
    stored = Stored(folder, read_manifest(folder))
    assert (stored.n, stored.m, stored.manifest["round"]) == (n, m, 4)
    for a in range(n):
        assert {name: whole.tolist() for name, whole in stored.replica(a).items()} == dict.fromkeys(
            ("x", "v"), vector(a, 4).tolist()
        )
    for rank in range(n * m):
        own = stored.own(rank)
        assert np.array_equal(own["buffers/bn.mean"], vector(rank // m, 4)[:7] + rank % m)
        assert own["buffers/count"].item() == rank
        assert own["random/none"].size == 0
        assert stored.facts(rank) == {"rank": rank, "lr": [0.1 / 3]}


def test_hdf5_checks_its_chunks(tmp_path):
    import h5py

    with h5py.File(save(tmp_path, 0) / "0.h5") as file:
        assert file["replica/x"].fletcher32
        assert file["rank/buffers/bn.mean"].fletcher32


def damage(folder, rng):
    """Damage one file of a checkpoint, at random; what was done."""
    path = rng.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(["bit", "bit", "bit", "cut", "empty", "more", "gone", "swapped", "folder"])
    if kind == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "more":
        content += b"\0"
    elif kind == "empty":
        content.clear()
    elif kind == "swapped":
        other = rng.choice([p for p in sorted(folder.iterdir()) if p != path])
        content = other.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(content)
    return f"{path.name}: {kind}"


def test_of_200_damaged_ones_none_is_taken_and_the_one_before_always_is(tmp_path):
    rng = random.Random(0)
    for i in range(200):
        out = tmp_path / str(i)
        older, newer = save(out, 1), save(out, 3)
        done = damage(newer, rng)
        stored, lines = find(out, Alone())
        assert stored is not None, done
        assert stored.folder == older, done
        # without a manifest it was never complete: nothing to tell
        told = 0 if "manifest.json: gone" in done else 1
        assert len(lines) == told, done
        assert all("round-000004" in line for line in lines)


def test_both_damaged_gives_none(tmp_path):
    rng = random.Random(1)
    for round in (1, 3):
        damage(save(tmp_path, round), rng)
    assert find(tmp_path, Alone())[0] is None


def test_without_a_manifest_there_is_no_checkpoint(tmp_path):
    older = save(tmp_path, 1)
    save(tmp_path, 3, manifest=False)
    stored, lines = find(tmp_path, Alone())
    assert stored.folder == older
    assert not lines
    put_away(tmp_path, 1)
    assert folders(tmp_path) == [older]


def test_a_newer_format_is_said_so(tmp_path, monkeypatch):
    folder = save(tmp_path, 0)
    monkeypatch.setattr(files, "FORMAT", 0)
    with pytest.raises(Damaged, match="format 1, this version reads 0"):
        read_manifest(folder)


@pytest.mark.parametrize("lower", [True, False])
def test_the_last_and_the_best_stay(tmp_path, lower):
    for round, score in enumerate([3.0, 1.0, None, 2.0, None, 2.5]):
        save(tmp_path, round, score=score if lower or score is None else -score, lower=lower)
    save(tmp_path, 6, manifest=False)  # under way
    prune(tmp_path, keep=2)
    assert [folder.name for folder in folders(tmp_path)] == [f"round-{i:06d}" for i in (7, 6, 5, 2)]


def test_damaged_newer_ones_are_kept_under_another_name(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 3)
    (newer / "2.h5").write_bytes(b"")
    put_away(tmp_path, 1)
    assert folders(tmp_path) == [older]
    assert (newer.with_name("damaged-round-000004") / "manifest.json").exists()
    put_away(tmp_path, None)
    assert folders(tmp_path) == []


def test_a_disk_that_is_full_leaves_nothing_of_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path, 0, {}, {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM])
def test_a_file_system_that_forces_no_folder_to_disk_keeps_files_all_the_same(tmp_path, monkeypatch, code):
    real = os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    save(tmp_path, 0)
    assert read_manifest(folder_of(tmp_path, 0)) is not None
    assert not force_folder(tmp_path)
