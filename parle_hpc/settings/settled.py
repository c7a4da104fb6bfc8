"""Settings settled for so many ranks, and those that exclude each other."""

from ..errors import BadInput
from .sections import DATA_PARALLEL, ROUNDS, Algorithm

# what says something of one algorithm alone, and would be without effect elsewhere
BELONGS = {
    "inside": "parle",
    "payload": "parle",
    "eta2": "parle",
    "mu2": "parle",
    "overlap": "diloco",
    "post_local_start": "local_sgd",
}


def settle(settings, size):
    """Settle the number of replicas for `size` ranks. Raises BadInput for settings that exclude each other."""
    name = settings.algorithm.name
    if settings.replicas is None:
        settings.replicas = default_replicas(name, size)
    if name in DATA_PARALLEL and settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: {name} is data-parallel over all ranks; leave --replicas out")
    for key, whose in BELONGS.items():
        value = getattr(settings.algorithm, key)
        if name != whose and value != Algorithm.model_fields[key].default:
            shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
            raise BadInput(f"--algorithm.{key} {shown}: belongs to {whose}, not to {name}; leave it out")
    if settings.algorithm.eta2 is None and settings.algorithm.mu2:
        mu2 = settings.algorithm.mu2
        raise BadInput(f"--algorithm.mu2 {mu2:g}: x has no momentum where it is the mean; give --algorithm.eta2, too")
    refuse_what_is_another_averages(settings.algorithm)
    settle_inner(settings, name)


def refuse_what_is_another_averages(algorithm):
    """Raises BadInput where a setting of an average is given that is not taken."""
    for key, average in (("average_decay", "ema"), ("average_start", "swa")):
        value = getattr(algorithm, key)
        if algorithm.average != average and value != Algorithm.model_fields[key].default:
            raise BadInput(
                f"--algorithm.{key} {value:g}: belongs to --algorithm.average {average}, not to {algorithm.average}; "
                "leave it out"
            )


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
