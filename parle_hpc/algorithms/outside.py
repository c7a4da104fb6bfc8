"""Weights that somebody else has changed: loaded, broadcast, masked, clamped, frozen.

A changed element of the live weights is taken over: x^a, z and, at the next coupling, x take its value, and x^a is at
rest there. What an optimiser left is known by sums of its bits, a sum for each block: the first change in mid-round
takes over the blocks that it lies in, and from then on a copy of what was left shows which elements are others.

A device is never waited for but once a round, at its end, where the sums of the whole round are looked at. What is
compared element by element is taken over there whether or not anything was changed, by a mask that nobody reads.
"""

import torch

from ..cluster.fingerprint import INTEGER


class Outside:
    """Notices changes of the live weights between two steps of an optimiser over `layout`.

    Attributes:
        tracks: whether a copy of what was left is kept, since somebody has changed weights in mid-round.
    """

    def __init__(self, layout):
        self._layout, self._left = layout, None
        self.forget()

    def forget(self):
        """What the live weights are at the next step is as it should be."""
        self._sums, self._differ = [None] * len(self._layout.blocks), [None] * len(self._layout.blocks)
        self._known = False

    def see(self):
        """What the live weights are now is as it should be."""
        self.forget()
        self.left()

    @property
    def tracks(self):
        return self._left is not None

    def track(self):
        """From the next step on keep a copy of what was left."""
        if self._left is None:
            self._left, self._known = self._layout.zeros(), False

    def arrive(self, i, vectors):
        """Before a step changes block i, whose live weights are `vectors`; whether they are seen to be others.

        A device is not waited for: what is not seen at once is `in_blocks` later.
        """
        if self._sums[i] is None or self.tracks:
            return False
        differs = self._sums[i] != sum_of(vectors, self._layout.on_cpu)
        self._differ[i] = differs if self._differ[i] is None else self._differ[i] | differs
        return self._layout.on_cpu and differs

    def arrive_all(self):
        """`arrive` of all blocks; whether one is seen to be another."""
        return sum(self.arrive(i, vectors) for i, vectors in enumerate(self._layout.live_runs())) > 0

    def leave(self, i, vectors):
        """After a step has changed block i."""
        if not self.tracks:
            self._sums[i] = sum_of(vectors, self._layout.on_cpu)

    def left(self):
        """The optimiser has changed the live weights, and is done with it."""
        if self.tracks:
            self._layout.pack(self._left)
            self._known = True

    def since_the_last_step(self):
        """Bool of shape (N,): elements that are not what the last step left; None where none was seen to change.

        It waits for a device, except where it `tracks`.
        """
        if self.tracks:
            return self.unlike(self._left) if self._known else None
        self.arrive_all()
        return self.in_blocks()

    def in_blocks(self):
        """Bool of shape (N,): the blocks in which a step found other weights than the one before had left, or None.

        It waits for a device, once where nothing was changed.
        """
        differ = {i: differs for i, differs in enumerate(self._differ) if differs is not None}
        self._differ = [None] * len(self._differ)
        if not sum(differ.values()):
            return None
        found = [i for i, differs in differ.items() if differs]
        self.track()
        return self._layout.marked([self._layout.span_of_block(i) for i in found])

    def unlike(self, flat):
        """Bool of shape (N,): live weights that are not those of a flat buffer; on a CPU None where all are."""
        if self._layout.on_cpu and self._layout.holds(flat):
            return None
        return self._layout.packed() != self._layout.rounded(flat)


JOINED = 1 << 24  # elements of small vectors that are copied together, on a device, to be summed at once


def few(vectors):
    """The vectors, neighbours copied together: on a device it is calls that cost, two for each vector of a sum."""
    together, filled = [], 0
    for v in vectors:
        if filled + v.numel() > JOINED and together:
            yield together[0] if len(together) == 1 else torch.cat(together)
            together, filled = [], 0
        together.append(v)
        filled += v.numel()
    yield together[0] if len(together) == 1 else torch.cat(together)


def sum_of(vectors, on_cpu):
    """Sum of the vectors' bits, of eight bytes each where that is possible, whatever the order in which it adds."""
    total = 0
    for v in vectors if on_cpu else few(vectors):
        size = v.element_size()
        if size == 4 and v.storage_offset() % 2 == 0 and v.numel() > 1:
            if v.numel() % 2:
                total, v = total + sum_of([v[-1:]], on_cpu), v[:-1]
            part = v.view(torch.int64).sum()
        else:
            part = v.view(INTEGER[size]).sum(dtype=torch.int64)
        total = total + (part.item() if on_cpu else part)
    return total
