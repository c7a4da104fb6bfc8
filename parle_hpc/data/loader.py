"""This rank's mini-batches, of any task, as its loss takes them."""

from itertools import count

import numpy as np
import torch

from .fetch import Key, fetch
from .moving import to_device
from .workers import Workers


class Loader:
    """Mini-batches by their number, on the device that trains.

    What a sample looks like is a function of seed, replica, step and this rank's place, whatever the number of workers
    and wherever a run begins: `random`, `numpy.random` and torch are seeded for each fetch, and go on afterwards as if
    nothing had been drawn. A generator that the dataset keeps for itself is not known here.

    Args:
        source: what knows the task, an object with
            dataset: map-style; __getitems__(list of int) fetches where there is one, else [dataset[i] for i in list];
            collate(samples): the mini-batch of what was fetched, of any form that `to_device` knows;
            prepare(batch, draw): what the loss takes, of a batch on the device. draw(function) calls
                function(generator, count) with a NumPy Generator, which is a function of seed, replica and step, for
                an array with a row for each of the `count` samples of the replica's mini-batch, and gives the rows of
                this batch, a tensor on the device. A second draw goes on with the generator;
            draws: False says that dataset and collate draw nothing, and saves the seeding; may be missing.
            With workers it is pickled, and dataset and collate of what that makes are used in processes of their own:
            what it is made of must be found in a new Python that knows sys.path and the file that was started.
        batches: MiniBatches, which says what is in each.
        device: torch device.
        accumulate: parts of each mini-batch of this rank, as torch.chunk divides it.
        workers: processes that fetch ahead, from the first call on; 0: none, it is fetched when it is asked for.
        first: the step that they begin with.
    """

    def __init__(self, source, batches, device, *, accumulate=1, workers=0, first=0):
        self._source, self._batches, self._device = source, batches, device
        size = -(-batches.share // accumulate)
        self._parts = [slice(start, min(start + size, batches.share)) for start in range(0, batches.share, size)]
        self._count, self._next, self._workers = workers, first, None
        self._draws = getattr(source, "draws", True)

    def __call__(self, step):
        """[(samples, batch)]: the parts of this rank's mini-batch `step`, prepared, on the device.

        With workers the steps must come one after the other, and none after an exception. Raises ValueError where they
        do not, what the source raises, and RuntimeError where a worker has died.
        """
        if self._count and step != self._next:
            raise ValueError(f"mini-batch {step} was asked for, and {self._next} is the next that the workers have")
        if self._count and self._workers is None:
            keys = (key for later in count(step) for key in self._keys(later))
            self._workers = Workers(self._source, keys, self._count, self._device.type == "cuda")
        keys = [None] * len(self._parts) if self._count else self._keys(step)
        self._next = None
        parts = [self._part(step, rows, key) for rows, key in zip(self._parts, keys, strict=True)]
        self._next = step + 1
        return parts

    def _keys(self, step):
        indices = self._batches.indices(step)
        return [
            Key(indices[rows], self._batches.words(step, part) if self._draws else None)
            for part, rows in enumerate(self._parts)
        ]

    def _part(self, step, rows, key):
        """(Samples, batch) of the `rows` of this rank; key: None where the workers have it."""
        batch = next(self._workers) if key is None else fetch(self._source, key)
        draw = self._batches.draw_at(step)

        def drawn(function):
            return torch.from_numpy(np.array(draw(function)[rows])).to(self._device, non_blocking=True)

        return rows.stop - rows.start, self._source.prepare(to_device(batch, self._device), drawn)

    def close(self):
        """End the workers, in a few seconds at most."""
        if self._workers is not None:
            self._workers.close()
            self._next = self._workers = None
