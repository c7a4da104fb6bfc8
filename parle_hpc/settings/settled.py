"""Settings settled for so many ranks, and those that exclude each other."""

import math

from ..errors import BadInput
from .sections import DATA_PARALLEL, ROUNDS

# what says something of one algorithm, average or way to couple alone, and would be without effect elsewhere
BELONGS = {
    "algorithm": {
        "inside": ("name", "parle"),
        "payload": ("name", "parle"),
        "eta2": ("name", "parle"),
        "mu2": ("name", "parle"),
        "pace": ("name", "parle"),
        "overlap": ("name", "diloco"),
        "post_local_start": ("name", "local_sgd"),
        "average_decay": ("average", "ema"),
        "average_start": ("average", "swa"),
    },
    "coupling": dict.fromkeys(("folder", "member", "max_age", "max_seconds", "wait_for", "weight"), ("via", "mailbox")),
}
COUPLED = ("parle", "elastic_sgd")  # what a member of a mailbox may train by


def settle(settings, size):
    """Settle the number of replicas for `size` ranks. Raises BadInput for settings that exclude each other."""
    name = settings.algorithm.name
    refuse_what_belongs_elsewhere(settings)
    if settings.coupling.via == "mailbox":
        settle_mailbox(settings, name)
    if settings.replicas is None:
        settings.replicas = default_replicas(name, size)
    if name in DATA_PARALLEL and settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: {name} is data-parallel over all ranks; leave --replicas out")
    settle_reference(settings.algorithm)
    settle_pace(settings.algorithm)
    settle_inner(settings, name)


def refuse_what_belongs_elsewhere(settings):
    """Raises BadInput where a setting of BELONGS is given, and what it belongs to is not taken."""
    for section, keys in BELONGS.items():
        given = getattr(settings, section)
        for key, (setting, whose) in keys.items():
            value, taken = getattr(given, key), getattr(given, setting)
            if taken != whose and value != type(given).model_fields[key].default:
                shown = f"{value:g}" if isinstance(value, float) else value if key == "folder" else str(value).lower()
                to = whose if setting == "name" else f"--{section}.{setting} {whose}"
                raise BadInput(f"--{section}.{key} {shown}: belongs to {to}, not to {taken}; leave it out")


def settle_mailbox(settings, name):
    """One replica, and a place in a mailbox. Raises BadInput where something is missing, or does not go with one."""
    c, a = settings.coupling, settings.algorithm
    if not c.folder:
        raise BadInput("--coupling.via mailbox: needs the folder that its members share: --coupling.folder DIR")
    if c.member is None:
        raise BadInput("--coupling.via mailbox: needs the number of this member: --coupling.member 0, 1, 2 or so")
    if name not in COUPLED:
        raise BadInput(f"--coupling.via mailbox: couples {' and '.join(COUPLED)}, not {name}")
    settings.replicas = settings.replicas or 1
    if settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: a member of a mailbox is one replica; leave --replicas out")
    if c.wait_for is not None and (name != "parle" or c.weight != 1):
        raise BadInput(f"--coupling.wait_for {c.wait_for}: is for members of parle, of equal weight; leave it out")
    if c.wait_for is not None and c.member >= c.wait_for:
        raise BadInput(f"--coupling.member {c.member}: with --coupling.wait_for {c.wait_for} it must be less than that")
    for key, right in (("reference", "current"), ("payload", "full"), ("pace", "steps"), ("eta2", None)):
        if getattr(a, key) != right:
            raise BadInput(f"--algorithm.{key} {getattr(a, key)}: does not go by a mailbox; leave it out")
    if math.isinf(a.rho0):
        raise BadInput("--algorithm.rho0 inf: is for replicas without a coupling; leave it or the mailbox out")


def settle_reference(algorithm):
    """Raises BadInput where (8d) is to have a rate or momentum that its x does not."""
    a = algorithm
    if a.eta2 is not None and math.isinf(a.rho0):
        raise BadInput(f"--algorithm.eta2 {a.eta2:g}: there is no x with --algorithm.rho0 inf; leave one of them out")
    if a.eta2 is None and a.mu2:
        raise BadInput(f"--algorithm.mu2 {a.mu2:g}: x has no momentum where it is the mean; give --algorithm.eta2, too")


def settle_pace(algorithm):
    """Raises BadInput where rounds by measured speeds are asked for, and cannot be agreed on or measured."""
    a = algorithm
    if a.pace == "time" and math.isinf(a.rho0):
        raise BadInput("--algorithm.pace time: nothing is coupled with --algorithm.rho0 inf; leave one of them out")
    if a.pace == "time" and a.L < 4:
        raise BadInput(f"--algorithm.L {a.L}: must be at least 4 with --algorithm.pace time, which times half a round")


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
