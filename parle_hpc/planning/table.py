"""What the planner prints."""

import math
import shlex

from tabulate import tabulate

from ..recipes import recipe_names
from .model import best_interval

HEAD = (
    "",
    "n x m",
    "L",
    "payload",
    "GB a rank",
    "MB inside",
    "MB across",
    "s a round",
    "gradients",
    "waited",
    "hidden",
    "late",
)
HEAD += ("computes", "hours", "rank-hours")


def table(costs, best, memory):
    """A line for each of the Costs, the best marked; memory: of a rank, in bytes."""
    return tabulate([row(each, each is best, memory) for each in costs], HEAD, disable_numparse=True)


def row(cost, best, memory):
    s, r = cost.shape, cost.round
    return (
        f"{'*' if best else ' '} {s.algorithm}",
        f"{s.n} x {s.m}",
        s.L,
        s.payload if s.algorithm == "parle" else "",
        f"{cost.memory / 1e9:.3g}{' (too much)' if cost.memory > memory else ''}",
        f"{cost.inside / 1e6:,.3g}",
        f"{cost.across / 1e6:,.3g}",
        f"{r.seconds:.3g}",
        f"{r.gradients:.2g}",
        f"{r.waited:.2g}",
        f"{r.hidden:.2g}",
        f"{r.late:.2g}",
        f"{100 * r.utilisation:.1f} %",
        f"{cost.hours:.3g}",
        f"{cost.rank_hours:,.3g}",
    )


def limit(cost):
    """Which term limits, in one sentence."""
    r, s = cost.round, cost.shape
    terms = {
        f"the mini-batches themselves limit: {s.m} ranks a replica": r.compute,
        "the gradients inside a replica limit: fewer ranks a replica, or a faster network between them": r.gradients,
        "the mean of the replicas limits: a larger L or half the payload": r.waited,
        "what moves at a coupling limits: a larger L": r.moves,
        "the slowest replica limits: steps differ too much": r.late,
    }
    what = max(terms, key=terms.get)
    return f"{what[0].upper()}{what[1:]}; it is {100 * terms[what] / r.seconds:.0f} % of a round."


def checkpoint(cost, node_mtbf):
    """What a checkpoint is and costs, in one sentence; node_mtbf: seconds in which a node fails once."""
    young = best_interval(cost.copied, cost.shape.nodes, node_mtbf)
    return (
        f"A checkpoint is {cost.checkpoint / 1e9:.3g} GB, and waited for {cost.copied:.2g} s every "
        f"{cost.every / 60:.3g} minutes; least would be lost with one every {young / 60:.3g}."
    )


def sbatch(cost, settings, arguments, device):
    """The line that starts the run on the settings of a command line, a list of arguments."""
    s = cost.shape
    per_node = min(s.per_node, s.ranks)
    # a tenth for what was not foreseen, in whole quarters of an hour
    quarters = max(1, math.ceil(1.1 * cost.seconds / 900))
    options = [f"--nodes={s.nodes}", f"--ntasks-per-node={per_node}"]
    if device == "cuda":
        options.append(f"--gpus-per-node={per_node}")
    options.append(f"--time={quarters // 4:02d}:{quarters % 4 * 15:02d}:00")
    recipe = settings.recipe
    script = [f"slurm/{recipe}.sbatch"] if recipe in recipe_names() else ["slurm/own.sbatch", recipe or "RECIPE.toml"]
    rest = without(arguments, "recipe", "replicas")
    return shlex.join(["sbatch", *options, *script, "--replicas", str(s.n), *rest])


def without(arguments, *names):
    """A command line without some of its options and their values."""
    left, options = [], [f"--{name}" for name in names]
    rest = iter(arguments)
    for argument in rest:
        if argument in options:
            next(rest, None)
        elif argument.partition("=")[0] not in options:
            left.append(argument)
    return left
