"""What a member of a mailbox knows of the others: whose x^a count in the mean, and how old they are."""

import math
import time
from typing import NamedTuple

import torch

from ..equations import eq_8d
from ..errors import BadInput
from . import mailbox
from .reference import tree_sum

FAR = 10  # times the distance that half of the others are within: farther than that, and than |x^a|, is left out


class Mean(NamedTuple):
    """x of (8d) as one member sees it: rest + part * its own x^a.

    Attributes:
        rest: shape (N,).
        part: of its own in the mean, 1/n where weights are equal; 0 where that is in `rest` already.
        round: the couplings that it had done.
        ages: of the others' values, in rounds of its own.
    """

    rest: torch.Tensor
    part: float
    round: int
    ages: list[int]


class Other:
    """Another member.

    Attributes:
        beat: its newest Heartbeat, None before the first.
        value, at: an x^a of it, shape (N,), and after how many of its couplings.
        taken: the counter of the heartbeat by which that is its newest.
        tried: the last attempt at that, (counter, round).
        since, since_seconds: round of the reader, and clock, when the counter last moved.
        problem: why it is left out, or None.
    """

    def __init__(self):
        self.beat = self.value = self.at = self.taken = self.tried = self.problem = None
        self.since, self.since_seconds = 0, 0.0

    def hear(self, beat, round):
        """Take in a Heartbeat, in a round of the reader."""
        if self.beat is None or beat.counter != self.beat.counter:
            self.since, self.since_seconds = round, time.monotonic()
        self.beat = beat


class Others:
    """The other members, looked at now and then. Their ages are told by their counters, so that clocks need not agree.

    Args:
        folder: of the mailbox.
        number: of the member that looks.
        like: a flat array, shape (N,), of the type of x^a.
        max_age, max_seconds: rounds of its own, and seconds, after which a member that leaves nothing new counts no
            more.
        wait_for: N where exactly members 0 to N - 1 count, each by its value of the same round; None: see above.
        say: called with a line for people when something is wrong with a member, once.
    """

    def __init__(self, folder, number, like, *, max_age, max_seconds, wait_for=None, say=print):
        self._folder, self._number, self._like, self._say = folder, number, like, say
        self._max_age, self._max_seconds, self._wait_for = max_age, max_seconds, wait_for
        self._known, self._gone, self._reads = {}, False, 0

    def look(self, round):
        """Read what is new, in the round after `round` couplings of one's own; whether there was anything."""
        take, before = self._take_newest if self._wait_for is None else self._take_same, self._reads
        for number in self._numbers():
            beat = mailbox.heartbeat(self._folder, number)
            if beat is not None:
                other = self._known.setdefault(number, Other())
                other.hear(beat, round)
                take(number, other, round)
        return self._reads > before

    def _numbers(self):
        if self._wait_for is not None:
            there = range(self._wait_for)
        else:
            try:
                there, gone = mailbox.members(self._folder), False
            except OSError as error:
                there, gone = [], True
                if not self._gone:
                    self._say(f"{self._folder} cannot be read ({error.strerror}): this member goes on by itself")
            self._gone = gone
        return [number for number in there if number != self._number]

    def _take_newest(self, number, other, round):
        attempt = (other.beat.counter, round)
        if other.taken == other.beat.counter or other.tried == attempt:
            return
        other.tried, problem = attempt, None
        for at in reversed(other.beat.rounds):
            try:
                self._take(number, other, at)
            except mailbox.Unreadable as error:
                problem = problem or f"{error}; what it left before counts, where that can be read"
            else:
                break
        if problem is None:
            other.taken = other.beat.counter
        self._judge(number, other, problem)

    def _take_same(self, number, other, round):
        if round in other.beat.rounds and (other.at, other.taken) != (round, other.beat.counter):
            problem = None
            try:
                self._take(number, other, round)
                other.taken = other.beat.counter
            except mailbox.Unreadable as error:
                problem = f"{error}; it is waited for"
            self._judge(number, other, problem)
        if other.at != round and other.beat.done:
            raise BadInput(
                f"--coupling.wait_for {self._wait_for}: member {number} has ended, after {other.beat.rounds[-1]} rounds"
            )

    def _take(self, number, other, at):
        other.value = torch.from_numpy(mailbox.read(self._folder, number, at, self._like))
        other.at, self._reads = at, self._reads + 1

    def _judge(self, number, other, problem):
        """Say what is wrong with a member, when that begins."""
        if problem is not None and other.problem is None:
            self._say(f"member {number}: {problem}")
        other.problem = problem

    def mean(self, own, weight, round):
        """The Mean after `round` couplings, with x^a, shape (N,), and its weight; None where a value is to come."""
        if self._wait_for is not None:
            return self._exact(own, round)
        counting = self._counting(own, round)
        values = [(other.beat.weight, other.value) for _, other in sorted(counting.items())]
        total = sum((w for w, _ in values), weight)
        rest = tree_sum([v if w == 1 else w * v for w, v in values]) if values else torch.zeros_like(own)
        eq_8d([rest], total)
        return Mean(rest, weight / total, round, [round - other.since for other in counting.values()])

    def _exact(self, own, round):
        values = {number: other.value for number, other in self._known.items() if other.at == round}
        values[self._number] = own
        if len(values) < self._wait_for:
            return None
        mean = tree_sum([value for _, value in sorted(values.items())])
        eq_8d([mean], len(values))
        return Mean(mean, 0.0, round, [0] * (len(values) - 1))

    def oldest_wanted(self):
        """The round from which on one of the members that wait for one another may need a value again."""
        saved = [other.beat.saved for other in self._known.values()]
        return min(saved, default=math.inf) if len(saved) == self._wait_for - 1 else 0

    def _counting(self, own, round):
        heard = {number: other for number, other in self._known.items() if other.value is not None}
        far, found = too_far({number: other.value for number, other in heard.items()}, own), {}
        for number, other in heard.items():
            age, seconds = round - other.since, time.monotonic() - other.since_seconds
            if age > self._max_age or seconds > self._max_seconds:
                why = (
                    "has done its rounds" if other.beat.done else f"nothing new for {age} rounds here, {seconds:.0f} s"
                )
                self._judge(number, other, f"{why}; it counts no more")
            elif number in far:
                self._judge(number, other, f"is {far[number]:.3g} away from here, far more than others; it is left out")
            else:
                found[number] = other
                if other.taken == other.beat.counter:
                    self._judge(number, other, None)
        return found


def too_far(values, own):
    """{number: |x - own|} of those of {number: x} that are far from `own`, and from the others: FAR says how far."""
    away = {number: torch.linalg.vector_norm(x - own).item() for number, x in values.items()}
    if len(away) < 2:
        return {}
    length = torch.linalg.vector_norm(own).item()
    found = {}
    for number, distance in away.items():
        others = sorted(d for n, d in away.items() if n != number)
        if distance > max(FAR * others[(len(others) - 1) // 2], length):
            found[number] = distance
    return found
