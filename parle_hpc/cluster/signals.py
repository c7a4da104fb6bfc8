"""Signals: the first asks for a saved end of the run, a second SIGTERM or too long a wait ends it at once.

Slurm and users send SIGUSR1 (or SIGUSR2, SIGTERM, Ctrl-C) to all ranks, or to some. The ranks agree on it at the end
of a round, save, and leave with status errors.SAVED.
"""

import os
import signal
import threading

from ..errors import say

URGENT = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, *URGENT)


_watching = None


def preemption(rank):
    """The Preemption of this process, made by the first call; rank: this rank's number, for messages."""
    global _watching
    _watching = _watching or Preemption(rank)
    return _watching


class Preemption:
    """Watches for signals from now on. Made in the main thread, before anything that takes long.

    Attributes:
        asked: name of the first signal that came, or None.
        grace: seconds from the first signal until this rank ends without having saved.
    """

    def __init__(self, rank=0):
        self.asked, self.grace, self._rank = None, 120.0, rank
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        # a handler runs only once the main thread is back from C, where a stuck one stays; a thread hears at once
        signal.set_wakeup_fd(write)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def over(self):
        """The run is complete: who asks for a saved end asks for nothing any more, and an urgent signal ends at once.

        Without this a signal would find its default action, which is to kill, once Python takes its handlers away.
        """
        global _watching
        _watching = None
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number in URGENT else signal.SIG_IGN)

    def _watch(self):
        while True:
            for number in os.read(self._read, 64):
                if number in SIGNALS:
                    self._came(number)

    def _came(self, number):
        name = signal.Signals(number).name
        if self.asked is None:
            self.asked = name
            timer = threading.Timer(self.grace, self._end, [f"did not end its round within {self.grace:g} s", number])
            timer.daemon = True
            timer.start()
        elif number in URGENT:
            self._end(f"a second one, {name}, came", number)

    def _end(self, why, number):
        say(f"rank {self._rank}: ends at once after {self.asked}: {why}; the last complete checkpoint stays")
        os._exit(128 + number)
