"""One process at a time in a folder, by small files alone: file locks do not work everywhere.

`claim-N` says who has the folder; the highest N counts. Who takes the folder makes the next N, which only one can. It
is taken from the living only when they give it back, which leaves N with the word `free`. A process of this machine
that is no more is known at once; one of another machine by its claim, which the living touch, standing still.
"""

import contextlib
import os
import platform
import re
import sys
import threading
import time
from pathlib import Path

# seconds between two touches, without one until the owner counts as dead, and between two looks
BEAT, PATIENCE, POLL = 5.0, 90.0, 1.0
FREE = "free"


def here():
    """What tells this machine, since it started, from others on which process numbers mean something else."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot[:8]} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{platform.node()} - -"


def born(process):
    """When a process of this machine started, in its own unit; None where there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Claim:
    """`with Claim(folder):` waits, with one line, until nobody else has the folder. Raises OSError as files do.

    Attributes:
        waited: somebody else had it first.
    """

    def __init__(self, folder):
        self.folder, self.waited = Path(folder), False
        self._path, self._given_back = None, threading.Event()

    def _claims(self):
        """Paths of the claims by number, the highest last."""
        found = {path: re.fullmatch(r"claim-(\d+)", path.name) for path in self.folder.iterdir()}
        return sorted((path for path in found if found[path]), key=lambda path: int(found[path][1]))

    def _newest(self):
        """(path, text, time of the last touch) of the claim that counts; None, FREE, None where there is none."""
        for path in reversed(self._claims()):
            try:
                # opened, since a network file system looks anew for who opens
                with open(path) as file:
                    return path, file.read(), os.fstat(file.fileno()).st_mtime_ns
            except FileNotFoundError:
                continue
        return None, FREE, None

    @staticmethod
    def _gone(text):
        """Whether a claim's owner is known to be no more: True, False, or None where its machine is another."""
        place, _, rest = text.partition("|")
        process, _, start = rest.partition(" ")
        return born(process) != start if place == here() and rest else None

    def __enter__(self):
        seen, since = None, 0.0
        while True:
            path, text, touched = self._newest()
            if (path, text, touched) != seen:
                seen, since = (path, text, touched), time.monotonic()
            gone = text == FREE or self._gone(text)
            if gone or (gone is None and time.monotonic() - since > PATIENCE):
                if self._take(path):
                    return self
                continue
            if not self.waited:
                self.waited = True
                place, _, rest = text.partition("|")
                owner = f"process {rest.split()[0]} on {place.split()[0]}" if rest else "another process"
                print(f"-- {owner} is at work in {self.folder}: waiting for it", flush=True)
            time.sleep(POLL)

    def _take(self, last):
        number = int(last.name.partition("-")[2]) + 1 if last else 1
        self._path = self.folder / f"claim-{number}"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(file, "w") as text:
            text.write(f"{here()}|{os.getpid()} {born(os.getpid())}")
        *older, newest = self._claims()
        # who looked before others came and went makes a number that counts no more
        if newest != self._path:
            self._path.unlink()
            return False
        for path in older:
            path.unlink(missing_ok=True)
        threading.Thread(target=self._touch, daemon=True).start()
        return True

    def _touch(self):
        while not self._given_back.wait(BEAT):
            try:
                os.utime(self._path)
                lost = self._claims()[-1] != self._path
            except OSError:
                continue  # the file system is away, or the folder: what works there will say so
            if lost:
                print(f"{self.folder} was taken over by another process while this one stood still", file=sys.stderr)
                os._exit(2)

    def __exit__(self, *_):
        self._given_back.set()
        # where the folder is gone, or full: the process is gone, soon
        with contextlib.suppress(OSError):
            self._path.write_text(FREE)
