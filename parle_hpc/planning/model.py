"""What a run costs, as pure functions; seconds, bytes and counts in and out, and each formula with its source.

A vector of S bytes between p ranks over a Link costs alpha a message and 1/B a byte (Hockney 1994): alpha is `latency`,
B `bandwidth`, that of the card of a node, which all of its ranks share.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

OUT_OF_STEP = 1.2  # of the least that the mean takes between four nodes and eight, benchmarks/mean.py


class Link(NamedTuple):
    """Seconds a message, and bytes a second."""

    latency: float
    bandwidth: float


class Round(NamedTuple):
    """Seconds of one round: what its steps compute, what they wait for gradients, what is left to wait for the mean
    that `travels`, (8c) with what stands around it, and what the slowest replica is waited for."""

    compute: float
    gradients: float
    waited: float
    moves: float
    travels: float
    late: float = 0.0

    @property
    def seconds(self):
        return self.compute + self.gradients + self.waited + self.moves + self.late

    @property
    def hidden(self):
        return self.travels - self.waited

    @property
    def utilisation(self):
        return self.compute / self.seconds


def ring(p, size, link):
    """An all-reduce in a ring: 2 (p - 1) messages of S/p (Patarasuk and Yuan 2009)."""
    return 2 * (p - 1) * (link.latency + size / p / link.bandwidth)


def halving(p, size, link):
    """Recursive halving, then doubling: 2 log2 p messages, 2 (p - 1)/p S (Rabenseifner 2004).

    Where p is no power of two, p' the next one below, the ranks beyond it hand over halves, S/2 and S/2, and get S.
    """
    power = 1 << (p.bit_length() - 1)
    messages, vectors = 2 * math.log2(power), 2 * (power - 1) / power
    if power < p:
        messages, vectors = messages + 3, vectors + 2
    return messages * link.latency + vectors * size / link.bandwidth


def coupling(n, on_node, size, inside, across):
    """The mean of n replicas of S bytes, `on_node` of them on each node, by coupling.reference.

    Everyone sends each other a part of S/n, and then of the sum: 2 (n - 1) messages, 2 (n - 1)/n S, the least there is
    (as a reduce-scatter and an all-gather; Rabenseifner 2004). The m columns of a replica move S/m each at the same
    time, through one card: S. Of what the replicas of a node send each other nothing goes through it. From four nodes
    on the rounds of pairs run out of step, and the cards idle for a sixth of the time (docs/benchmarks.md).
    """
    here = min(n, on_node)
    away, near = 2 * here * (n - here) / n, 2 * here * (here - 1) / n
    if n > 3 * here:
        away *= OUT_OF_STEP
    messages = 2 * (n - here) * across.latency + 2 * (here - 1) * inside.latency
    return messages + away * size / across.bandwidth + near * size / inside.bandwidth


def gradients(m, on_node, size, inside, between, reduce=ring):
    """The mean of m ranks' gradients, `on_node` of them on each node: inside the nodes, and of those between them.

    Between k nodes a card carries 2 (k - 1)/k S, in a ring through all ranks and in halves alike.
    """
    nodes, here = -(-m // on_node), min(m, on_node)
    return reduce(here, size, inside) + reduce(nodes, size, between)


def step(compute, travels, last=None, noise=0.0, m=1):
    """(Seconds computed, seconds waited for gradients) of a mini-batch.

    last: seconds of the last bucket where gradients leave during the backward pass, two thirds of the whole (as many
    operations for the weights and for what they are fed, each as in the forward pass); None where they leave after it.
    Of m ranks the slowest is waited for.
    """
    waits = travels if last is None else max(last, travels - 2 / 3 * compute)
    return compute, waits + noise * compute * expected_maximum(m)


def one_round(L, computed, waited, travels, moves=0.0, way="hidden", late=0.0, shared=False):
    """The Round of L mini-batches.

    way: "hidden": the mean travels during the mini-batches, and what is left over is waited for; "waited": it is
    waited for; "step": one at each mini-batch, behind its forward and backward pass.
    late: seconds for which the slowest replica is waited for. shared: gradients go over the same cards, and while both
    travel each has half of them.
    """
    compute, gradient = L * computed, L * waited
    if way == "step":
        left, travels = L * (travels - computed - waited), L * travels
    elif way == "waited":
        left = travels
    else:
        left = travels - compute - gradient
    if shared and way == "hidden" and waited:
        # a step in which both travel takes as long again for the gradients, and moves the mean by what it has
        gradient += waited * min(L, travels / (computed + waited))
    return Round(compute, gradient, max(0.0, left), moves, travels, late)


def expected_maximum(n):
    """Of n standard normal numbers: the integral over x > 0 of 1 - Phi(x)^n - Phi(-x)^n (David and Nagaraja 2003)."""
    cdf, width = NormalDist().cdf, 0.01
    if n == 1:
        return 0.0
    points = (cdf(width * (i + 0.5)) for i in range(900))
    return width * sum(1 - p**n - (1 - p) ** n for p in points)


def lateness(n, L, compute, noise):
    """How much longer the slowest of n replicas takes for L mini-batches than their mean, whose times are independent.

    noise: standard deviation of a mini-batch's seconds, over their mean. Where a coupling is hidden a replica may be
    a round ahead of another, and less is waited for: an upper bound, see the simulator.
    """
    return noise * compute * math.sqrt(L) * expected_maximum(n)


def state(algorithm, m=1, n=2, *, kept=0, inner=1, payload="full"):
    """Floats a weight that an algorithm keeps on a rank beside weight and gradient (docs/benchmarks.md).

    inner: floats a weight of the optimiser inside, 1 for momentum, 2 for AdamW. kept: shares of one more state, such as
    the mean of the round before.
    """
    if algorithm == "parle":
        compressed = 2 + 2.5 / n if payload == "bfloat16" and n > 1 else 0
        return 1 + inner + (3 + kept + compressed) / m
    return {"entropy_sgd": 3 + inner, "elastic_sgd": 4, "sgd": 1, "sam": 2}.get(algorithm, 1 + inner + 2 / m)


def passing(m, n, algorithm="parle"):
    """Floats a weight that come and go on the host: MPI's copy of what is reduced, and gradients as one buffer."""
    mean = 0 if n == 1 else 1 if algorithm == "elastic_sgd" else 1 / m
    # y as one vector, and how far it came
    moved = 1 + 1 / m if algorithm in ("diloco", "local_sgd") else 0
    return mean + moved + (2 if m > 1 else 0)


def saved(algorithm, inner=1):
    """Floats a weight in a replica's part of a checkpoint (docs/benchmarks.md, what a checkpoint costs)."""
    return {"sgd": 2, "sam": 2, "elastic_sgd": 3, "diloco": 2 + inner, "local_sgd": 3}.get(algorithm, 3 + inner)


def with_checkpoints(seconds, every, waits, written):
    """Seconds of work, with a checkpoint after each `every`: waited for, and `written` by a thread meanwhile."""
    return seconds / every * (max(every, written) + waits)


def with_failures(seconds, every, restart, nodes, between):
    """Expected seconds where a node fails once in `between`, and half of `every` is done again (Daly 2006)."""
    return seconds * (1 + nodes / between * (every / 2 + restart))


def best_interval(waits, nodes, between):
    """Seconds between two checkpoints at which least is lost: sqrt(2 delta M) (Young 1974)."""
    return math.sqrt(2 * waits * between / nodes)
