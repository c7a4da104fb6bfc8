"""One folder, one holder: who has a folder, and whether he still lives, also where file locks do not work.

    OUT/running.json    {"host", "process", "since", ...}, made by the run that holds the folder, gone when that ends

The set-up of an environment holds its folder too, with a Python that has no packages yet.

The holder writes its file again every few seconds. On its own machine its process says whether it lives; seen from
another one, or from another container, it does while the file is still written.
"""

import errno
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from ..errors import say

NAME = "running.json"
BEAT = 5.0  # seconds between two writings of the file
SILENT = 4 * BEAT  # seconds without one after which a holder on another machine is dead


class Held(Exception):
    """A living process holds the folder: the text names it."""


def here():
    """What tells whether a process can be looked up from here: the machine since its start, and its numbering."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return {"host": socket.gethostname(), "boot": boot, "namespace": os.stat("/proc/self/ns/pid").st_ino}


def begun(process):
    """When a process of this machine began, in its clock's ticks; None where there is none, or a dead one."""
    try:
        with open(f"/proc/{process}/stat") as file:
            # the name, in brackets, may hold anything
            state, *rest = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def read(path):
    """The text of a holder's file, empty where it cannot be read, None where there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def understood(text):
    """What a holder's file says; {} where nothing of use."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lives(path, found):
    """Whether the holder that was `found` in its file does; waits for as long as SILENT to see."""
    if all(found.get(name) == value for name, value in here().items()):
        since = begun(found.get("process"))
        return since is not None and since == found.get("begun")
    probe = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        before = path.stat().st_mtime_ns
        # the file system's clock, not this machine's
        probe.touch()
        now = probe.stat().st_mtime_ns
        probe.unlink()
        until = time.monotonic() + SILENT
        while now - before < SILENT * 1e9 and time.monotonic() < until:
            time.sleep(BEAT / 10)
            # opened, for network file systems keep what they know of a file that is not
            with open(path) as file:
                if os.fstat(file.fileno()).st_mtime_ns != before:
                    return True
    except OSError:
        return False
    return False


def living(folder):
    """The living run that holds a folder, in words, or None. Waits for as long as SILENT to see."""
    path = Path(folder) / NAME
    text = read(path)
    if text is None or not lives(path, found := understood(text)):
        return None
    return words(found)


class Hold:
    """The hold of a folder, from when it is made until `release`, or this process ends.

    Args:
        folder: which exists and can be written.
        name: of the file in it.

    Raises Held where a living process holds it; OSError where it cannot be written.
    """

    def __init__(self, folder, name=NAME):
        self._folder, self._path = Path(folder), Path(folder) / name
        mine = {"id": uuid4().hex, "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **here()}
        self._text = json.dumps({**mine, "begun": begun(os.getpid())})
        while not self._claimed():
            text = self._read_whole()
            if text is None:
                continue
            found = understood(text)
            if lives(self._path, found):
                raise Held(words(found))
            self._take_away(text)
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="hold", daemon=True).start()

    def _claimed(self):
        try:
            with open(self._path, "x") as file:
                file.write(self._text)
        except FileExistsError:
            return False
        return True

    def _read_whole(self):
        """The file's text; one that is made at this moment is waited for."""
        until = time.monotonic() + BEAT / 5
        while (text := read(self._path)) == "" and time.monotonic() < until:
            time.sleep(BEAT / 500)
        return text

    def _take_away(self, text):
        """Remove the file that a dead holder left, and no other that has come in its place."""
        aside = self._path.with_name(f".{self._path.name}.{uuid4().hex}")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if read(aside) != text and not self._path.exists():
                aside.rename(self._path)
            aside.unlink(missing_ok=True)

    def _beat(self):
        taker = None
        while not (taker or self._over.wait(BEAT)):
            try:
                with open(self._path, "r+") as file:
                    text = file.read()
                    if text == self._text or not understood(text):
                        # in place, which needs no room on a full disk
                        file.seek(0)
                        file.write(self._text)
                    else:
                        taker = understood(text)
            except OSError as error:
                # where the disk is gone for a while, the run goes on as long as its saving does
                if error.errno == errno.ENOENT and not self._over.is_set() and self._folder.is_dir():
                    with suppress(OSError):
                        self._claimed()
        if taker and not self._over.is_set():
            say(f"{self._folder}: {words(taker)} has taken it, for this one was silent for {SILENT:g} s; it ends")
            os._exit(1)

    def release(self):
        """Let the folder go."""
        self._over.set()
        with suppress(OSError):
            if read(self._path) == self._text:
                self._path.unlink()


def words(found):
    """A holder as a message names it."""
    if not found:
        return "another process"
    return f"process {found.get('process')} on {found.get('host')}, since {found.get('since')},"
