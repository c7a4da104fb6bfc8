"""What fetches ahead, shared by training and the validations between: who asks gets what it asked for, in its order."""

from collections import deque

from .threaded import FetchingThread
from .workers import Workers


def ahead_of(source, workers, device, thread=False):
    """The Ahead of so many processes, for a torch device, or of a thread for a GPU; None where there are neither."""
    cuda = device.type == "cuda"
    return Ahead(source, workers, cuda) if workers or (thread and cuda) else None


class Ahead:
    """Fetches mini-batches ahead, by `count` processes or by a thread, which start with the first that is asked for.

    Mini-batches of training that are under way when a sweep begins are kept until it is over.

    Args:
        source: as Loader has it, or {part: source}, where keys say of which part they are.
        count: number of processes; 0 for a thread, where samples draw nothing.
        pinned: bring tensors into pinned memory.
    """

    def __init__(self, source, count, pinned):
        self._source, self._count, self._pinned = source, count, pinned
        self._workers, self._training = None, iter(())
        self._asked, self._under_way, self._kept = deque(), deque(), deque()

    def feed(self, keys):
        """Fetch for these Keys, one after the other, where nobody sweeps."""
        self._training = keys

    def _keys(self):
        while True:
            sweeps = bool(self._asked)
            key = self._asked.popleft() if sweeps else next(self._training, None)
            if key is None:
                return
            self._under_way.append(sweeps)
            yield key

    def _next(self):
        """(Whether it is of a sweep, mini-batch): the next that comes from the workers."""
        if self._workers is None:
            self._workers = self._start()
        found = next(self._workers)
        return self._under_way.popleft(), found

    def _start(self):
        if self._count:
            return Workers(self._source, self._keys(), self._count, self._pinned)
        return FetchingThread(self._source, self._keys(), self._pinned)

    def __next__(self):
        """The mini-batch of the next Key of `feed`. Raises what the source raises, RuntimeError where a worker died."""
        return self._kept.popleft() if self._kept else self._next()[1]

    def sweep(self, keys):
        """Yield the mini-batches of a list of Keys; to be taken to its end."""
        self._asked.extend(keys)
        for _ in keys:
            while True:
                sweeps, found = self._next()
                if sweeps:
                    break
                self._kept.append(found)
            yield found
        if not self._under_way:
            # nothing is trained: without a next key the workers are at their end
            self.close()

    def close(self):
        """End what fetches, in a few seconds at most."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
