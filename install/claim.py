"""One process at a time in a folder: who comes second waits."""

import sys
import time
from pathlib import Path

# nothing of it needs a package
sys.path.append(str(Path(__file__).resolve().parent.parent))

from parle_hpc.cluster.hold import Held, Hold

NAME = "at-work.json"
POLL = 1.0  # seconds between two looks


class Claim:
    """`with Claim(folder):` waits, with one line, until nobody else has the folder. Raises OSError as files do.

    Attributes:
        waited: somebody else had it first.
    """

    def __init__(self, folder):
        self._folder, self.waited = folder, False

    def __enter__(self):
        while True:
            try:
                self._hold = Hold(self._folder, NAME)
                return self
            except Held as other:
                if not self.waited:
                    print(f"-- {other} is at work in {self._folder}: waiting for it", flush=True)
                self.waited = True
                time.sleep(POLL)

    def __exit__(self, *_):
        self._hold.release()
