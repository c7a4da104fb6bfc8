"""Runs of many replicas, event by event (SimPy), for what planning.model has no formula: noise, slow and dying nodes,
replicas that keep pace by time, and the mailbox, in which nobody waits and values are stale.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simpy


@dataclass(frozen=True)
class Scenario:
    """n replicas for so many rounds of L mini-batches; all times in seconds.

    step, noise: of a mini-batch, its mean and standard deviation over the mean. travels, moves, way: as in
    planning.model.one_round; or "mailbox": each replica writes its x^a and reads the others' on a file system that all
    share, one after the other, `write` for one, while it trains. slow: factors of the replicas' steps, by number.
    pace: "steps", or "time": L/2 to 2L mini-batches in a round, as the replica's speed is to the middle one's. between:
    in which a replica's nodes fail once on average, after which the job, of a mailbox that replica, is back at its last
    checkpoint, of every `checkpoint` rounds, `restart` later.
    """

    n: int
    rounds: int
    L: int
    step: float
    noise: float = 0.0
    travels: float = 0.0
    moves: float = 0.0
    way: str = "hidden"
    write: float = 0.0
    slow: dict[int, float] | None = None
    pace: str = "steps"
    between: float = float("inf")
    restart: float = 0.0
    checkpoint: int = 100
    seed: int = 0


class Outcome(NamedTuple):
    """Seconds until the last replica has ended; of them what was spent on mini-batches that count, the mean over
    replicas; failures; mini-batches in a round of each replica; and of a mailbox the mean age of what was read, in
    rounds of the reader."""

    seconds: float
    computed: float
    failures: int
    steps: np.ndarray
    age: float

    @property
    def utilisation(self):
        return self.computed / self.seconds


def scenario_of(cost, noise=0.0, **more):
    """The Scenario of a planning.costs.Cost, with `noise` in its steps, and `more` of its fields."""
    r, s = cost.round, cost.shape
    given = {"n": s.n, "rounds": 100, "L": s.L, "step": (r.compute + r.gradients) / s.L, "noise": noise}
    way = "waited" if cost.way == "waited" else "hidden"
    return Scenario(**{**given, "way": way, "travels": r.travels, "moves": r.moves, **more})


def compared(cost, machine, work):
    """Lines for people: 100 rounds of a Cost as they would go in some ways."""
    write = 4 * work.parameters / machine.disk
    ways = {
        "as planned": {},
        "one replica at half the speed": {"slow": {0: 2.0}},
        "the same, pace = time": {"slow": {0: 2.0}, "pace": "time"},
        "the same, by mailbox": {"slow": {0: 2.0}, "way": "mailbox", "write": write},
    }
    for name, more in ways.items():
        found = simulate(scenario_of(cost, work.noise, **more))
        age = f", others' values {found.age:.2g} rounds old" if found.age else ""
        yield f"simulated, {name}: {found.seconds / 100:.3g} s a round{age}"


def simulate(scenario):
    """The Outcome of a Scenario."""
    return (Mailbox if scenario.way == "mailbox" else Job)(scenario).run()


class Simulation:
    """What both kinds of run share: the replicas' speeds, their rounds' lengths, and chance."""

    def __init__(self, scenario):
        s = self.s = scenario
        self.random = np.random.default_rng(s.seed)
        self.factors = np.ones(s.n)
        for replica, factor in (s.slow or {}).items():
            self.factors[replica] = factor
        self.steps = np.full(s.n, s.L)
        if s.pace == "time":
            wanted = np.rint(s.L * np.median(self.factors) / self.factors)
            self.steps = np.clip(wanted, max(1, s.L // 2), 2 * s.L).astype(int)
        self.mean = self.steps * self.factors * s.step
        self.failures = 0

    def busy(self):
        """Seconds of one round's mini-batches of each replica: of independent steps, so with sqrt(L) of their noise."""
        if not self.s.noise:
            return self.mean
        spread = self.s.noise * self.factors * self.s.step * np.sqrt(self.steps)
        return np.maximum(0.1 * self.mean, self.random.normal(self.mean, spread))

    def fails_after(self, replicas):
        """Seconds to the next failure of one of so many replicas."""
        return self.random.exponential(self.s.between / replicas) if np.isfinite(self.s.between) else np.inf

    def outcome(self, seconds, age=0.0):
        return Outcome(seconds, float(self.mean.mean()) * self.s.rounds, self.failures, self.steps, age)


class Job(Simulation):
    """One job of all replicas: the mean of round t is there `travels` after the last of them has started it."""

    def run(self):
        clock, saved = 0.0, 0
        while saved < self.s.rounds:
            environment = simpy.Environment(initial_time=clock)
            ends = self.attempt(environment, saved)
            fails = clock + self.fails_after(self.s.n)
            # an attempt that is over leaves no event behind
            environment.run(until=None if np.isinf(fails) else fails)
            if len(ends) == self.s.rounds - saved:
                return self.outcome(ends[-1])
            self.failures += 1
            saved += len(ends) // self.s.checkpoint * self.s.checkpoint
            clock = fails + self.s.restart
        return self.outcome(clock)

    def attempt(self, environment, first):
        """Start all replicas at round `first`; the times at which rounds were ended by all, a list that grows."""
        self.environment, self.started, self.arrived, self.ended, ends = environment, Counter(), {}, Counter(), []
        self.lengths = [self.busy() for _ in range(first, self.s.rounds)]
        for a in range(self.s.n):
            environment.process(self.replica(a, ends))
        return ends

    def replica(self, a, ends):
        s, environment = self.s, self.environment
        for t, busy in enumerate(self.lengths):
            mean = self.start(t) if s.way == "hidden" else None
            yield environment.timeout(busy[a])
            yield mean or self.start(t)
            if s.moves:
                yield environment.timeout(s.moves)
            self.ended[t] += 1
            if self.ended[t] == s.n:
                ends.append(environment.now)

    def start(self, t):
        """A replica starts the mean of round t: the event of its arrival."""
        self.started[t] += 1
        event = self.arrived.setdefault(t, self.environment.event())
        if self.started[t] == self.s.n:
            travels = self.environment.timeout(self.s.travels)
            travels.callbacks.append(lambda _: event.succeed())
        return event


class Mailbox(Simulation):
    """Each replica a job of its own, which waits for the file system alone."""

    def run(self):
        self.environment = simpy.Environment()
        self.disk = simpy.Resource(self.environment)
        self.written, self.total, self.ages = np.zeros(self.s.n), 0.0, []
        self.lengths = [self.busy() for _ in range(self.s.rounds)]
        for a in range(self.s.n):
            self.environment.process(self.replica(a))
        self.environment.run()
        return self.outcome(self.end, float(np.mean(self.ages or 0.0)))

    def replica(self, a):
        s, environment, t = self.s, self.environment, 0
        fails = self.fails_after(1)
        while t < s.rounds:
            busy, exchanged = self.lengths[t][a], environment.process(self.exchange(a))
            if environment.now + busy > fails:
                self.failures += 1
                yield environment.timeout(max(0.0, fails - environment.now) + s.restart)
                fails = environment.now + self.fails_after(1)
                t = t // s.checkpoint * s.checkpoint
                continue
            yield environment.timeout(busy)
            yield exchanged
            if s.moves:
                yield environment.timeout(s.moves)
            t += 1
        self.end = environment.now

    def exchange(self, a):
        """Write x^a, read the newest of all others."""
        s = self.s
        with self.disk.request() as turn:
            yield turn
            yield self.environment.timeout(s.n * s.write)
        now, own = self.environment.now, self.written[a]
        others = now - (self.total - own) / max(1, s.n - 1)
        if now > own:
            self.ages.append(others / (now - own))
        self.written[a], self.total = now, self.total + now - own
