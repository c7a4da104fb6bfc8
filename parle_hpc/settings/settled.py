"""Settings settled for so many ranks, and those that exclude each other."""

from ..errors import BadInput
from .sections import DATA_PARALLEL, ROUNDS, Algorithm


def settle(settings, size):
    """Settle the number of replicas for `size` ranks. Raises BadInput for settings that exclude each other."""
    name = settings.algorithm.name
    if settings.replicas is None:
        settings.replicas = default_replicas(name, size)
    if name in DATA_PARALLEL and settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: {name} is data-parallel over all ranks; leave --replicas out")
    if name != "parle" and settings.algorithm.inside == "workers":
        raise BadInput(f"--algorithm.inside workers: belongs to parle, not to {name}; leave it out")
    if name != "parle" and settings.algorithm.payload != "full":
        raise BadInput(f"--algorithm.payload bfloat16: belongs to parle, not to {name}; leave it out")
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
    if name not in ROUNDS:
        raise BadInput(f"--algorithm.inner {a.inner}: belongs to parle and entropy_sgd, not to {name}; leave it out")
    if a.inner_lr is None:
        raise BadInput(f"--algorithm.inner {a.inner}: needs its rate, eta', such as --algorithm.inner_lr 0.001")
    if settings.schedule.lr >= 1:
        raise BadInput(
            f"--schedule.lr {settings.schedule.lr:g}: must be under 1 with --algorithm.inner {a.inner}, where it is "
            "eta of (8c) alone"
        )


def default_replicas(algorithm, size):
    """Replicas where the user gives none: 3 where the world divides by 3, else 2 where it is even, else 1."""
    if algorithm in DATA_PARALLEL:
        return 1
    return next(n for n in (3, 2, 1) if size % n == 0)
