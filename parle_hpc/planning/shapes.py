"""Which shapes are looked at, and which of them is the best."""

from dataclasses import replace

from ..algorithms.flat_optimizer import SGD_ROUND
from ..cluster.placement import divide
from ..errors import BadInput
from ..settings import DATA_PARALLEL, load
from .costs import Shape, cost

WAITS = 0.01  # of a round that is waited for, from which on there may be something to gain
IN_STEPS = ("sgd", "sam", "elastic_sgd")  # counted in rounds that they do not have


def shape_of(settings, n, m, per_node):
    """The Shape that the settings have with n replicas of m ranks."""
    a = settings.algorithm
    return Shape(a.name, n, m, SGD_ROUND if a.name in IN_STEPS else a.L, per_node, a.payload)


def divided(settings, nodes, per_node):
    """(n, m) of all sensible shapes of so many nodes, or of the one with --replicas.

    A replica has its ranks on one node or fills nodes, and its mini-batch divides among them. Raises BadInput where
    there is none.
    """
    ranks, name, batch = nodes * per_node, settings.algorithm.name, settings.data.batch_size
    if name in DATA_PARALLEL or settings.replicas is not None:
        n = settings.replicas or 1
        found = [(n, divide(ranks, n))]
    else:
        found = [(ranks // m, m) for m in range(1, ranks + 1) if ranks % m == 0]
    fit = [(n, m) for n, m in found if batch % m == 0 and (per_node % m == 0 or m % per_node == 0)]
    if not fit:
        n, m = found[0]
        raise BadInput(
            f"{nodes} nodes of {per_node}: {n} replicas of {m} ranks do not divide a mini-batch of {batch}, or the "
            "nodes; take other --replicas, --nodes or --data.batch_size"
        )
    return fit


def costs(arguments, settings, machine, work, nodes, per_node):
    """(The settings' own Costs, the best of them, Costs of what could be beside it).

    arguments: the command line that the settings came from. Raises BadInput where nothing fits into the memory.
    """
    own = [
        cost(settings, machine, work, shape_of(settings, n, m, per_node)) for n, m in divided(settings, nodes, per_node)
    ]
    best = best_of(own, machine)
    return own, best, [cost(other, machine, work, shape) for other, shape in beside(arguments, settings, best)]


def best_of(found, machine):
    """The shortest run of those that fit; of several replicas where there are some. Raises BadInput where none fits."""
    fit = [each for each in found if each.memory <= machine.memory]
    if not fit:
        least = min(found, key=lambda each: each.memory)
        raise BadInput(
            f"the model does not fit: {least.memory / 1e9:.3g} GB a rank with {least.shape.n} replicas of "
            f"{least.shape.m} ranks, and a rank of {machine.name} has {machine.memory / 1e9:.3g}; take more "
            "--data.accumulate, or fewer --replicas"
        )
    return min(fit, key=lambda each: (each.shape.n == 1, each.seconds))


def beside(arguments, settings, best):
    """(Settings, Shape) of what may be set beside the best: less traffic where it waits, rivals, and SGD."""
    shape, name = best.shape, settings.algorithm.name
    if name == "parle":
        if best.round.waited > WAITS * best.round.seconds:
            yield changed(arguments, "L", str(4 * shape.L)), replace(shape, L=4 * shape.L)
            yield changed(arguments, "payload", "bfloat16"), replace(shape, payload="bfloat16")
        yield changed(arguments, "name", "diloco"), replace(shape, algorithm="diloco", payload="full")
    if name != "sgd" and settings.data.batch_size % shape.ranks == 0:
        sgd = changed(arguments, "name", "sgd")
        yield sgd, shape_of(sgd, 1, shape.ranks, shape.per_node)


def changed(arguments, key, value):
    """The settings of a command line with one more setting of section `algorithm`."""
    return load([*arguments, f"--algorithm.{key}", value])
