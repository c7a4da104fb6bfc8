"""When a run saves, and what it says of it."""

from ..checkpoints.saver import overdue
from ..cluster.agreement import Agreement

FIRST = 5  # rounds after which there is a checkpoint in any case; then after twice as many, until `every` is reached
ASKED = -1  # in an Agreement, where the least number counts


class Saving:
    """The checkpoints of a run, one under way at a time.

    Args:
        saver: Saver, which writes them.
        snapshot: called for (pieces, own, facts) of this rank, as resume.capture gives them.
        facts: what a manifest has that does not change during the run.
        every, minutes: rounds between two, and minutes after which there is one in any case.
        metrics: Metrics, which are told.
        watchdog: Watchdog, which is told what this rank is at.
        round_length: mini-batches in a round.
        decides: whether it is this rank, whose clock counts, that says when.
    """

    def __init__(self, saver, snapshot, facts, *, every, minutes, metrics, watchdog, round_length, decides):
        self._saver, self._snapshot, self._facts = saver, snapshot, facts
        self._every, self._minutes = every, minutes
        self._metrics, self._watchdog, self._round_length, self._decides = metrics, watchdog, round_length, decides

    @property
    def under_way(self):
        """Whether a checkpoint is being written."""
        return self._saver.round is not None

    @property
    def older(self):
        """Words on the checkpoint that stays whatever happens; empty where there is none."""
        return "" if self._saver.last is None else f", the one of round {self._saver.last + 1} stays"

    def words(self, round):
        """What this rank tells the others after a round: (ASKED for a checkpoint or 0, the one that is written)."""
        due = is_due(round + 2, self._every) or overdue(self._saver.age, self._minutes)
        asked = ASKED if self._decides and due and not self.under_way else 0
        if not self.under_way:
            return asked, Agreement.NOTHING
        return asked, self._saver.round if self._saver.written else ASKED

    def settle_where(self, written):
        """Make the one under way complete where `written`, the least word of all ranks on it, says that all have it."""
        if self.under_way and self._saver.round <= written < Agreement.NOTHING:
            self.settle()

    def start(self, round, score):
        """Begin a checkpoint after round `round`; score: the validation's first score then, or None. Collective."""
        if self.under_way:
            self.settle()
        self._watchdog.beat(f"saving after round {round + 1}")
        step = (round + 1) * self._round_length
        self._saver.start(round, self._snapshot(), {"step": step, **self._facts, "score": score})

    def settle(self):
        """Wait for the one under way; None, or what went wrong. Collective over all ranks."""
        round = self._saver.round
        problem = self._saver.settle()
        if problem is None:
            self._metrics.event("checkpoint", round, (round + 1) * self._round_length)
        else:
            self._metrics.say(f"no checkpoint after round {round + 1}: {problem}; the run goes on{self.older}")
        return problem


def is_due(done, every):
    """Whether a checkpoint is due after `done` rounds: early ones come soon, so that a short run too goes on."""
    times, rest = divmod(done, FIRST)
    return done % every == 0 or (done < every and not rest and times.bit_count() == 1)
