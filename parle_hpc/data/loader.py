"""This rank's mini-batches, of any task, as its loss takes them."""

from itertools import count

import numpy as np
import torch

from .fetch import Key, fetch
from .moving import to_device


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
            part: its name, where `ahead` has several.
        batches: MiniBatches, which says what is in each.
        device: torch device.
        accumulate: parts of each mini-batch of this rank, as torch.chunk divides it.
        ahead: Ahead, which fetches from step `first` on; None: it is fetched when it is asked for. Processes pickle
            what they are given as source, and use dataset and collate of what that makes: it must be found in a new
            Python that knows sys.path and the file that was started.
        stream: Stream, on which each mini-batch is made while the one before it trains; None: when it is asked for.
        first: the step that they begin with.
    """

    def __init__(self, source, batches, device, *, accumulate=1, ahead=None, stream=None, first=0):
        self._source, self._batches, self._device = source, batches, device
        size = -(-batches.share // accumulate)
        self._parts = [slice(start, min(start + size, batches.share)) for start in range(0, batches.share, size)]
        self._ahead, self._map = ahead, map if stream is None else stream.map
        self._next, self._steps = first, self._map(self._made, count(first))
        self._draws, self._name = getattr(source, "draws", True), getattr(source, "part", None)
        if ahead is not None:
            ahead.feed(key for step in count(first) for key in self._keys(step))

    def __call__(self, step):
        """[(samples, batch)]: the parts of this rank's mini-batch `step`, prepared, on the device.

        With `ahead` the steps must come one after the other, and none after an exception. Raises ValueError where they
        do not, what the source raises, and RuntimeError where a worker has died.
        """
        if step != self._next:
            if self._ahead:
                raise ValueError(f"mini-batch {step} was asked for, and {self._next} is the next that the workers have")
            self._steps = self._map(self._made, count(step))
        self._next = None
        parts = next(self._steps)
        self._next = step + 1
        return parts

    def _made(self, step):
        keys = [None] * len(self._parts) if self._ahead else self._keys(step)
        return [self._part(step, rows, key) for rows, key in zip(self._parts, keys, strict=True)]

    def _keys(self, step):
        indices = self._batches.indices(step)
        return [
            Key(indices[rows], self._batches.words(step, part) if self._draws else None, self._name)
            for part, rows in enumerate(self._parts)
        ]

    def _part(self, step, rows, key):
        """(Samples, batch) of the `rows` of this rank; key: None where the workers have it."""
        batch = next(self._ahead) if key is None else fetch(self._source, key)
        draw = self._batches.draw_at(step)

        def drawn(function):
            return to_device(torch.from_numpy(np.array(draw(function)[rows])), self._device)

        return rows.stop - rows.start, self._source.prepare(to_device(batch, self._device), drawn)


def sweep(source, indices, device, ahead=None, stream=None):
    """Yield (samples, batch) for each array of `indices`, prepared without chance, on the device.

    source, ahead, stream: as Loader has them. What a dataset draws all the same is a function of the first index.
    """
    keys = [Key(np.asarray(some), words_of(source, some), source.part if ahead else None) for some in indices]
    found = (fetch(source, key) for key in keys) if ahead is None else ahead.sweep(keys)

    def made(fetched):
        key, batch = fetched
        return len(key.indices), source.prepare(to_device(batch, device), None)

    yield from (map if stream is None else stream.map)(made, zip(keys, found, strict=True))


def words_of(source, indices):
    """Seeds for what samples draw that are not trained on; None where they draw nothing."""
    return np.random.SeedSequence(int(indices[0])).generate_state(8) if getattr(source, "draws", True) else None
