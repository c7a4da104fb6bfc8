"""Who sees which samples: a pure function of seed, replica, place and step, so that nothing needs to be saved."""

import math

import numpy as np

from ..errors import BadInput

PARTS, DRAWS, SAMPLES = 1, 2, 3  # keep apart the random streams of one seed


def seen_by(samples, fraction, *, seed, replica, n, covers=True):
    """The samples that a replica sees, sorted, for section 5: a fixed random part of the set, equally many for each.

    Replica a takes a window of `fraction` of the set's random order, from a / n of it onwards, and around its end. So
    each sample is seen by n * fraction of the replicas, rounded up or down.

    Args:
        samples: size of the training set.
        fraction: of it that each replica sees, 0 to 1.
        seed: of the random order.
        replica, n: index of the replica, and their number.
        covers: every sample must be in at least one part.

    Raises BadInput where it must and n parts of this size cannot.
    """
    size = min(samples, math.ceil(fraction * samples * (1 - 1e-12)))
    if covers and size * n < samples:
        replicas = math.ceil(samples / size)
        raise BadInput(
            f"--data.fraction {fraction:g}: {n} replica{'s' * (n > 1)} cannot see every sample so; take at least "
            f"{math.ceil(1e4 / n) / 1e4:g}, or {replicas} replicas"
        )
    if size == samples:
        return np.arange(samples)
    order = np.random.default_rng([seed, PARTS]).permutation(samples)
    return np.sort(np.roll(order, -(replica * samples // n))[:size])


class MiniBatches:
    """Every replica draws its own order of what it sees for each pass; its ranks share each mini-batch.

    A pass is B mini-batches without repetition, B = floor(len(seen) / batch_size); the samples left over are dropped
    and drawn anew in the next pass. The ranks of a replica take disjoint parts of a mini-batch, batch_size / m samples
    each, so that the mini-batch does not depend on m.

    Args:
        seen: indices of the samples that the replica sees.
        batch_size: samples in a mini-batch of a replica.
        seed: of the order.
        replica: index of the replica.
        place, m: this rank's place in the replica, and the replica's number of ranks.

    Attributes:
        B: mini-batches in a pass.
        share: samples of this rank in each.

    Raises BadInput where batch_size exceeds the set or does not divide among the ranks.
    """

    def __init__(self, seen, batch_size, *, seed, replica, place=0, m=1):
        if batch_size > len(seen):
            raise BadInput(f"--data.batch_size {batch_size}: a replica sees {len(seen)} samples, take at most that")
        if batch_size % m:
            right = batch_size // m * m
            raise BadInput(
                f"--data.batch_size {batch_size} does not divide among the {m} ranks of a replica; "
                f"nearest: {f'{right} or ' if right else ''}{right + m}"
            )
        self.seen, self.batch_size, self.B = seen, batch_size, len(seen) // batch_size
        self._seed, self._replica, self._place = seed, replica, place
        self.share = batch_size // m
        self._mine = slice(place * self.share, (place + 1) * self.share)
        self._pass, self._order = None, None

    def indices(self, step):
        """The samples of this rank in mini-batch `step` (counted from 0 over all passes), shape (batch_size / m,)."""
        done, batch = divmod(step, self.B)
        if done != self._pass:
            self._pass = done
            self._order = np.random.default_rng([self._seed, self._replica, done]).permutation(self.seen)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size][self._mine]

    def draw_at(self, step):
        """What draws at random for mini-batch `step`: a function of functions, which gives this rank's rows.

        It calls function(generator, batch_size), which returns an array with a row for each sample of the replica's
        mini-batch, and gives those of this rank. The generator is a function of seed, replica and step, so that what
        is drawn does not depend on m; a second draw goes on with it.
        """
        random = None

        def draw(function):
            nonlocal random
            # made where something is drawn: most mini-batches need none
            random = random or np.random.default_rng([self._seed, self._replica, step, DRAWS])
            rows = np.asarray(function(random, self.batch_size))
            if rows.shape[:1] != (self.batch_size,):
                raise ValueError(
                    f"what is drawn must have a row for each of {self.batch_size} samples; its shape is {rows.shape}"
                )
            return rows[self._mine]

        return draw

    def words(self, step, part):
        """Seeds for what this rank's samples of mini-batch `step` draw themselves, part by part: uint32 (8,)."""
        seeds = np.random.SeedSequence([self._seed, self._replica, step, self._place, part, SAMPLES])
        return seeds.generate_state(8)


def shares(samples, batch_size, rank, ranks, limit=None):
    """This rank's part of a sweep over a set: every `ranks`-th mini-batch, in the order of the set.

    Over all ranks together each sample comes once; with `limit`, those of `limit` mini-batches spread over the set.
    """
    starts = np.arange(0, samples, batch_size)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(int)]
    for start in starts[rank::ranks]:
        yield np.arange(start, min(start + batch_size, samples))
