"""The mailbox, Remark 3: its members, replicas that are jobs of their own, leave their x^a in a folder for one another.

    DIR/experiment.json               what all members have in common; the first one writes it
    DIR/config.toml                   its settings, by which parle_hpc.gather knows the network
    DIR/members/NUMBER/x-ROUND.h5     a member's x^a after so many couplings: HDF5 with fletcher32, and a digest
    DIR/members/NUMBER/heartbeat.json a counter that moves with each x^a, which of them are there, and what may differ
    DIR/members/NUMBER/running.json   who is this member now (cluster.hold)

A file has one writer, and is there whole or not at all. A member reads the others' files and writes none of them.
"""

import hashlib
import io
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import h5py
import numpy as np

from ..cluster.durable import CHUNK, UNABLE, fill, write_whole
from ..cluster.hold import Held, Hold
from ..errors import BadInput, brief

EXPERIMENT, CONFIG, HEARTBEAT = "experiment.json", "config.toml", "heartbeat.json"


class Unreadable(ValueError):
    """What another member has written cannot be taken: the message says which file, and why."""


class Heartbeat(NamedTuple):
    """What a member says of itself beside its x^a.

    Attributes:
        counter: moves with each x^a, and never back, also where the member goes on from an earlier round.
        rounds: the couplings after which there is an x^a of it, oldest first.
        saved: couplings in its last complete checkpoint, from which it might go on.
        weight: of its x^a in a mean.
        done: whether it has done all its rounds.
        facts: what may differ between members, such as L.
    """

    counter: int
    rounds: list[int]
    saved: int
    weight: float
    done: bool
    facts: dict[str, Any]


def member_folder(folder, number):
    """Where a member leaves what it has to say."""
    return Path(folder) / "members" / str(number)


def members(folder):
    """The numbers of all members that there ever were, as far as the folder can be read. Raises OSError."""
    with suppress(FileNotFoundError):
        return sorted(int(name) for name in os.listdir(Path(folder) / "members") if name.isdecimal())
    return []


def x_file(folder, number, round):
    """The file of a member's x^a after so many couplings."""
    return member_folder(folder, number) / f"x-{round:06d}.h5"


def heartbeat(folder, number):
    """A member's Heartbeat; None where there is none yet, or none that can be read now."""
    try:
        return Heartbeat(**json.loads((member_folder(folder, number) / HEARTBEAT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read(folder, number, round, like):
    """A member's x^a after so many couplings: an array of the shape (N,) and the type of `like`. Raises Unreadable."""
    path = x_file(folder, number, round)
    try:
        with h5py.File(path, "r", locking=False) as file:
            x = file["x"]
            if (x.shape, x.dtype) != (like.shape, like.dtype):
                raise Unreadable(f"{path} is of another network: {x.shape} {x.dtype} for {like.shape} {like.dtype}")
            found = np.empty_like(like)
            for start in range(0, len(found), CHUNK):
                part = np.s_[start : start + CHUNK]
                found[part] = x[part]
            right = file.attrs["blake2b"]
    except (OSError, KeyError, RuntimeError) as error:
        raise Unreadable(f"{path} is damaged or gone ({brief(error)})") from None
    if digest(found) != right:
        raise Unreadable(f"{path} is not what was written")
    if not np.isfinite(found).all():
        raise Unreadable(f"{path} is not finite")
    return found


def digest(values):
    """Of an array's bytes, as text."""
    return hashlib.blake2b(values, digest_size=16).hexdigest()


class Member:
    """One member's own folder, which it holds until `close`.

    Args:
        folder: of the mailbox, which `agree` has found right.
        number: which of the members this is, from 0.
        weight: of its x^a in a mean.
        facts: what JSON can hold, for the others to see.

    Raises BadInput where a living process is this member already, or its folder cannot be written.
    """

    def __init__(self, folder, number, weight=1.0, **facts):
        self.folder, self.number = Path(folder), number
        mine = member_folder(folder, number)
        try:
            mine.mkdir(parents=True, exist_ok=True)
            self._hold = Hold(mine)
        except Held as other:
            raise BadInput(
                f"--coupling.member {number}: {other} is it already, in {folder}; take another number"
            ) from None
        except OSError as error:
            raise cannot_be_written(folder, error) from None
        before = heartbeat(folder, number)
        # members that wait for one another may want again what an earlier life has left
        counter, rounds = (before.counter, before.rounds) if before else (0, [])
        self._told = Heartbeat(counter, rounds, 0, weight, False, facts)

    def post(self, round, x, saved, keep_from):
        """Leave x^a after `round` couplings, shape (N,), for the others; the bytes written.

        Of the earlier ones stay the last, and all from round `keep_from` on. Raises OSError where the disk is full or
        gone; then the others go on with what they have.
        """
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            fill(file, "x", x)
            file.attrs.update(round=round, blake2b=digest(x))
        content = memory.getbuffer()
        write_whole(x_file(self.folder, self.number, round), content)
        before = [r for r in self._told.rounds if r < round]
        rounds = [r for r in before if r >= keep_from or r == before[-1]] + [round]
        self._tell(counter=self._told.counter + 1, rounds=rounds, saved=saved)
        self._prune()
        return len(content)

    def _prune(self):
        named = {x_file(self.folder, self.number, round) for round in self._told.rounds}
        for path in member_folder(self.folder, self.number).glob("x-*.h5"):
            if path not in named:
                path.unlink(missing_ok=True)

    def _tell(self, **changed):
        told = self._told._replace(**changed)
        text = json.dumps(told._asdict())
        write_whole(member_folder(self.folder, self.number) / HEARTBEAT, text.encode())
        self._told = told

    def close(self, done=False):
        """Let go of it; done: all its rounds are done."""
        if done:
            with suppress(OSError):
                self._tell(done=True)
        self._hold.release()


def cannot_be_written(folder, error):
    return BadInput(f"--coupling.folder {folder}: cannot be written ({error.strerror}); give a folder that can")


def agree(folder, facts, config):
    """Make the folder of a mailbox, or find that its members are of the same experiment; who may write, in words.

    Args:
        folder: of the mailbox, on a file system that all members share.
        facts: {what a message calls it: what JSON can hold}, which must be the same for all members.
        config: text of config.toml.

    Raises BadInput where it cannot be written, everybody may write to it, or its members are of another experiment.
    """
    folder, text = Path(folder), json.dumps(facts, indent=1)
    try:
        (folder / "members").mkdir(parents=True, exist_ok=True)
        if not (folder / EXPERIMENT).exists():
            write_once(folder / CONFIG, config)
            write_once(folder / EXPERIMENT, text)
        found = json.loads((folder / EXPERIMENT).read_text())
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    except ValueError:
        raise BadInput(f"{folder / EXPERIMENT} is damaged; give another folder to --coupling.folder") from None
    for name, value in json.loads(text).items():
        if found.get(name) != value:
            raise BadInput(
                f"--coupling.folder {folder}: is of another experiment, with {name} {brief(found.get(name))}, and here "
                f"it is {brief(value)}; give another folder"
            )
    return writers(folder)


def writers(folder):
    """Who may write to a folder, and so to the members, in words. Raises BadInput where everybody may."""
    for path in (folder, folder / "members"):
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH:
            raise BadInput(f"--coupling.folder {path}: everybody may write to it; chmod o-w {path}")
    try:
        owner, group = folder.owner(), folder.group()
    except KeyError:  # numbers without names, as in a container
        owner, group = (f"{kind} {number}" for kind, number in (("user", os.getuid()), ("group", os.getgid())))
    return f"{owner} and the group {group}" if mode & stat.S_IWGRP else owner


def write_once(path, text):
    """Write a small file, whole, where none is of that name; another process may do the same at this moment."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    write_whole(partial, text.encode())
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        if not path.exists():  # a file system without such links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
