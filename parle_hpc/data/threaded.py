"""A thread that fetches mini-batches ahead, where samples have no chance in them."""

import atexit
import threading
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from .fetch import fetch_of
from .moving import pinned

AHEAD = 2  # mini-batches
GRACE = 3.0  # seconds for a fetch that is under way at the end


class FetchingThread:
    """An iterator over the mini-batches of `keys`, in their order, which a thread fetches ahead.

    Args:
        source: as Loader has it, or {part: source}; what it drew would be of generators that others draw from.
        keys: iterator of Key; it is asked where this is.
        pin: bring tensors into pinned memory.

    Raises what the source raises.
    """

    def __init__(self, source, keys, pin):
        self._source, self._keys = source, keys
        # a new thread is on the first GPU
        self._gpu = torch.cuda.current_device() if pin else None
        self._asked, self._under_way = SimpleQueue(), deque()
        # a daemon: nobody waits for a file system that hangs
        self._thread = threading.Thread(target=self._run, name="fetches ahead", daemon=True)
        self._thread.start()
        # before torch is at its end
        atexit.register(self.close)
        for _ in range(AHEAD):
            self._ask()

    def __next__(self):
        """The next mini-batch."""
        if not self._under_way:
            raise StopIteration
        found = self._under_way.popleft()
        self._ask()
        return found.result()

    def _ask(self):
        key = next(self._keys, None)
        if key is not None:
            self._under_way.append(Future())
            self._asked.put((key, self._under_way[-1]))

    def _run(self):
        for key, found in iter(self._asked.get, None):
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(self._fetched(key))
                # also one that would end this thread alone, such as SystemExit
                except BaseException as error:
                    found.set_exception(error)

    def _fetched(self, key):
        batch = fetch_of(self._source, key)
        if self._gpu is None:
            return batch
        torch.cuda.set_device(self._gpu)
        return pinned(batch)

    def close(self):
        """End the thread, in a few seconds at most."""
        for found in self._under_way:
            found.cancel()
        self._asked.put(None)
        self._thread.join(GRACE)
        atexit.unregister(self.close)
