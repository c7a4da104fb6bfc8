"""What the ranks between which a mean travels must have in common, and how they tell one another.

Before the first mean the facts that never change are compared, in a message of their own since means of different
lengths cannot meet; after that a few numbers of each rank travel behind every mean, each in its rank's place, where the
others put zeros. All of it happens where the mean travels, and no step waits for it.
"""

import numpy as np
import torch

from ..cluster.fingerprint import compare

PROGRESS = (
    "the step of the coupling",
    "the number of calls of at_reference",
    "the step of the last at_reference",
)
WHERE = "at a coupling: the ranks do not agree"


class Terms:
    """Facts that must be the same on the ranks of a communicator.

    Args:
        facts: function giving {what a message calls it: number}, the same keys in the same order on all ranks.
        progress: function giving a number for each of PROGRESS.
        shown: names of facts of which the number itself says something.
        tells: function giving further numbers, as many on all ranks, in which they may differ.

    Attributes:
        width: numbers of a rank behind a mean.
    """

    def __init__(self, facts=dict, progress=lambda: (0, 0, 0), shown=(), tells=tuple):
        self._facts, self._progress, self._shown, self._tells = facts, progress, (*shown, *PROGRESS), tells
        self.width = len(PROGRESS) + len(tells())
        self._greeted = False

    def numbers(self, dtype):
        """What this rank says of itself behind the next mean, shape (width,)."""
        return torch.tensor((*self._progress(), *self._tells()), dtype=dtype)

    def check(self, numbers, ranks):
        """What each rank `tells`, a list of lists, of the numbers that have come with a mean.

        Raises Disagreement where the progress of all `ranks`, world ranks, is not the same.
        """
        rows = numbers.view(-1, self.width).tolist()
        compare(PROGRESS, [row[: len(PROGRESS)] for row in rows], ranks, WHERE, self._shown)
        return [row[len(PROGRESS) :] for row in rows]

    def greet(self, comm, ranks):
        """The steps of the exchange before the first mean between `ranks`, for Travelling; none later on."""
        facts = {} if self._greeted else self._facts()
        if not facts:
            return
        self._greeted = True
        mine = np.array([*facts.values()], np.float64)
        everyone = np.empty(comm.Get_size() * len(mine))
        yield comm.Iallgather(mine, everyone).Test
        compare(facts, everyone.reshape(-1, len(mine)).tolist(), ranks, WHERE, self._shown)
