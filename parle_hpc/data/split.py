"""Who sees which samples: a pure function of seed, replica, place and step, so that nothing needs to be saved."""

import numpy as np

from ..failure import BadInput


class MiniBatches:
    """Every replica draws its own order of the whole set for each pass; its ranks share each mini-batch.

    A pass is B mini-batches without repetition, B = floor(samples / batch_size); the samples left over are dropped and
    drawn anew in the next pass. The ranks of a replica take disjoint parts of a mini-batch, batch_size / m samples
    each, so that the mini-batch does not depend on m.

    Args:
        samples: size of the training set.
        batch_size: samples in a mini-batch of a replica.
        seed: of the order.
        replica: index of the replica.
        place, m: this rank's place in the replica, and the replica's number of ranks.

    Raises BadInput where batch_size exceeds the set or does not divide among the ranks.
    """

    def __init__(self, samples, batch_size, *, seed, replica, place=0, m=1):
        if batch_size > samples:
            raise BadInput(f"--data.batch_size {batch_size}: the training set has {samples} samples, take at most that")
        if batch_size % m:
            right = batch_size // m * m
            raise BadInput(
                f"--data.batch_size {batch_size} does not divide among the {m} ranks of a replica; "
                f"nearest: {f'{right} or ' if right else ''}{right + m}"
            )
        self.samples, self.batch_size, self.B = samples, batch_size, samples // batch_size
        self._seed, self._replica = seed, replica
        share = batch_size // m
        self._mine = slice(place * share, (place + 1) * share)
        self._pass, self._order = None, None

    def indices(self, step):
        """The samples of this rank in mini-batch `step` (counted from 0 over all passes), shape (batch_size / m,)."""
        done, batch = divmod(step, self.B)
        if done != self._pass:
            self._pass = done
            self._order = np.random.default_rng([self._seed, self._replica, done]).permutation(self.samples)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size][self._mine]


def shares(samples, batch_size, rank, ranks, limit=None):
    """This rank's part of a sweep over a set: every `ranks`-th mini-batch, in the order of the set.

    Over all ranks together each sample comes once; with `limit`, those of `limit` mini-batches spread over the set.
    """
    starts = np.arange(0, samples, batch_size)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(int)]
    for start in starts[rank::ranks]:
        yield np.arange(start, min(start + batch_size, samples))
