"""What a recipe costs in one shape on one machine, put together from planning.model."""

from dataclasses import dataclass

from ..cluster.topology import BUCKET
from ..settings import rounds_of
from . import model

FLOAT = 4  # bytes of a weight's state
GATHERED = ("parle", "diloco", "local_sgd")  # those whose ranks put shares together at a coupling


@dataclass(frozen=True)
class Shape:
    """n replicas of m ranks, of which a node has `per_node`; L mini-batches in a round."""

    algorithm: str
    n: int
    m: int
    L: int
    per_node: int
    payload: str = "full"

    @property
    def ranks(self):
        return self.n * self.m

    @property
    def nodes(self):
        return -(-self.ranks // self.per_node)

    @property
    def vectors(self):
        """What a replica's ranks send together, in vectors of all weights: mostly each has a share of one."""
        whole = self.m if self.algorithm == "elastic_sgd" else 1
        return whole / 2 if self.payload == "bfloat16" else whole

    @property
    def replicas_on_node(self):
        return max(1, self.per_node // self.m)


@dataclass(frozen=True)
class Cost:
    """Bytes on a rank, that a rank sends in a round inside and across, and of a checkpoint; its Round; the whole run.

    way: as way_of. copied: seconds for which a checkpoint is waited for. every: seconds between two. rounds: of the
    run, which takes `seconds`.
    """

    shape: Shape
    memory: float
    inside: float
    across: float
    way: str
    round: model.Round
    checkpoint: float
    copied: float
    every: float
    rounds: int
    seconds: float

    @property
    def hours(self):
        return self.seconds / 3600

    @property
    def rank_hours(self):
        return self.hours * self.shape.ranks


def way_of(algorithm, shape):
    """When the mean of the replicas travels, as planning.model.one_round has it; algorithm: that section's settings."""
    if shape.algorithm == "elastic_sgd":
        return "step"
    hidden = algorithm.overlap if shape.algorithm == "diloco" else algorithm.reference != "average"
    return "waited" if shape.algorithm == "local_sgd" or not hidden else "hidden"


def cost(settings, machine, work, shape):
    """The Cost of a recipe's settings; work: machine.Work of the recipe."""
    d = settings.data
    part = d.batch_size / shape.m / d.accumulate
    a, s, size = settings.algorithm, shape, FLOAT * work.parameters
    B = max(1, int(d.fraction * work.training_samples) // d.batch_size)
    round = round_of(a, machine, work, s, d.accumulate * work.at(part, work.seconds))
    _, rounds = rounds_of(settings, B, s.L)
    rounds = min(rounds, settings.schedule.max_rounds or rounds)
    inner = 2 if a.inner == "adamw" else 1
    kept = int(a.reference == "lagged" or a.eta2 is not None) + int(a.eta2 is not None)
    floats = 2 + model.state(s.algorithm, s.m, s.n, kept=kept, inner=inner, payload=s.payload)
    if machine.device == "cpu":
        floats += model.passing(s.m, s.n, s.algorithm)
    stored = size * model.saved(s.algorithm, inner)
    copied, written = stored / s.m / machine.copied, stored * s.n / machine.disk
    every = min(60 * settings.run.checkpoint_minutes, settings.run.checkpoint_every * round.seconds)
    works = model.with_checkpoints(rounds * round.seconds, every, copied, written)
    way = way_of(a, s)
    couplings = s.L if way == "step" else 1
    return Cost(
        shape=s,
        memory=work.at(part, work.memory) + floats * size,
        inside=s.L * 2 * (s.m - 1) / s.m * size,
        across=couplings * 2 * (s.n - 1) / s.n * size * s.vectors / s.m,
        way=way,
        round=round,
        checkpoint=stored * s.n,
        copied=copied,
        every=every,
        rounds=rounds,
        seconds=model.with_failures(works, every, machine.restart, s.nodes, machine.node_mtbf),
    )


def round_of(algorithm, machine, work, shape, computes):
    """The model.Round of a shape on a machine, where a mini-batch computes for `computes` seconds."""
    s, size = shape, FLOAT * work.parameters
    inside, across, between = (link.model for link in (machine.inside, machine.across, machine.between))
    reduce = model.ring if machine.device == "cuda" else model.halving

    def gradients(size):
        return model.gradients(s.m, s.per_node, size, inside, between, reduce)

    spans = s.m > s.per_node
    last = gradients(min(size, BUCKET)) if spans else None
    computed, waited = model.step(computes, gradients(size), last, work.noise, s.m)
    way, moves, travels = way_of(algorithm, s), work.moves, 0.0
    if s.m > 1 and s.algorithm in GATHERED:
        # an all-gather is half an all-reduce
        moves += gradients(size) / 2
    if s.n > 1:
        travels = model.coupling(s.n, s.replicas_on_node, s.vectors * size, inside, across)
    late = model.lateness(s.n, s.L, computed, work.noise)
    return model.one_round(s.L, computed, waited, travels, moves, way, late, shared=spans)
