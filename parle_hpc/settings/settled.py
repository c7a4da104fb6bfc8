"""Settings settled for so many ranks, and those that exclude each other."""

import math

from ..errors import BadInput
from .sections import DATA_PARALLEL, ROUNDS, Algorithm

# what says something of one algorithm, or one average, alone, and would be without effect elsewhere
BELONGS = {
    "inside": ("name", "parle"),
    "payload": ("name", "parle"),
    "eta2": ("name", "parle"),
    "mu2": ("name", "parle"),
    "overlap": ("name", "diloco"),
    "post_local_start": ("name", "local_sgd"),
    "average_decay": ("average", "ema"),
    "average_start": ("average", "swa"),
}


def settle(settings, size):
    """Settle the number of replicas for `size` ranks. Raises BadInput for settings that exclude each other."""
    name = settings.algorithm.name
    if settings.replicas is None:
        settings.replicas = default_replicas(name, size)
    if name in DATA_PARALLEL and settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: {name} is data-parallel over all ranks; leave --replicas out")
    refuse_what_belongs_elsewhere(settings.algorithm)
    settle_reference(settings.algorithm)
    settle_inner(settings, name)


def refuse_what_belongs_elsewhere(algorithm):
    """Raises BadInput where a setting of BELONGS is given, and what it belongs to is not taken."""
    for key, (setting, whose) in BELONGS.items():
        value, taken = getattr(algorithm, key), getattr(algorithm, setting)
        if taken != whose and value != Algorithm.model_fields[key].default:
            shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
            to = whose if setting == "name" else f"--algorithm.{setting} {whose}"
            raise BadInput(f"--algorithm.{key} {shown}: belongs to {to}, not to {taken}; leave it out")


def settle_reference(algorithm):
    """Raises BadInput where (8d) is to have a rate or momentum that its x does not."""
    a = algorithm
    if a.eta2 is not None and math.isinf(a.rho0):
        raise BadInput(f"--algorithm.eta2 {a.eta2:g}: there is no x with --algorithm.rho0 inf; leave one of them out")
    if a.eta2 is None and a.mu2:
        raise BadInput(f"--algorithm.mu2 {a.mu2:g}: x has no momentum where it is the mean; give --algorithm.eta2, too")


def settle_inner(settings, name):
    """Raises BadInput where what is asked of the optimiser inside does not fit the algorithm `name`."""
    a = settings.algorithm
    if settings.schedule.inner and a.inner == "sgd":
        raise BadInput(
            "--schedule.inner true: eta' of (8a) is never annealed; give --algorithm.inner adamw or muon, too"
        )
    if not (settings.schedule.outer or settings.schedule.inner):
        raise BadInput("--schedule.outer false: eta stays only where eta' is annealed; give --schedule.inner true, too")
    if a.inner == "sgd":
        return
    if name not in (*ROUNDS, "diloco"):
        raise BadInput(
            f"--algorithm.inner {a.inner}: belongs to parle, entropy_sgd and diloco, not to {name}; leave it out"
        )
    if a.inner_lr is None:
        raise BadInput(f"--algorithm.inner {a.inner}: needs its rate, eta', such as --algorithm.inner_lr 0.001")
    if name in ROUNDS and settings.schedule.lr >= 1:
        raise BadInput(
            f"--schedule.lr {settings.schedule.lr:g}: must be under 1 with --algorithm.inner {a.inner}, where it is "
            "eta of (8c) alone"
        )


def default_replicas(algorithm, size):
    """Replicas where the user gives none: 3 where the world divides by 3, else 2 where it is even, else 1."""
    if algorithm in DATA_PARALLEL:
        return 1
    return next(n for n in (3, 2, 1) if size % n == 0)


def rounds_of(settings, B, length):
    """(Mini-batches in an epoch, rounds of `length` of them that the epochs have), with B mini-batches in a pass."""
    steps_per_epoch = B * length if settings.algorithm.name in ROUNDS else B
    return steps_per_epoch, max(1, math.ceil(settings.schedule.epochs * steps_per_epoch / length))
