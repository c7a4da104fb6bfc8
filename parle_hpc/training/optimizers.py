"""The optimiser that the settings name, and the average of its weights."""

from functools import partial

from ..algorithms.averaged import Averaged
from ..algorithms.diloco import DiLoCo
from ..algorithms.elastic_sgd import ElasticSGD
from ..algorithms.entropy_sgd import EntropySGD
from ..algorithms.inners import INNERS
from ..algorithms.local_sgd import LocalSGD
from ..algorithms.parle import Parle
from ..algorithms.sam import SAM
from ..algorithms.sgd import SGD


def make_optimizer(settings, params, topology, B, mailbox=None):
    """The optimiser that the settings name, over `params`, with B mini-batches in a pass; mailbox: a Membership."""
    a = settings.algorithm
    common = {"lr": settings.schedule.lr, "momentum": a.momentum, "weight_decay": a.weight_decay}
    groups = {"comm": topology.cross, "replica": topology.replica, "gather": topology.gather}
    if a.name == "diloco":
        if a.inner != "sgd":
            common = {"inner": partial(INNERS[a.inner], lr=a.inner_lr, weight_decay=a.weight_decay)}
        outer = {"outer_lr": a.outer_lr, "outer_momentum": a.outer_momentum, "overlap": a.overlap}
        return DiLoCo(params, L=a.L, **outer, **groups, **common)
    if a.name == "local_sgd":
        return LocalSGD(params, L=a.L, post_local_start=round(a.post_local_start * B), **groups, **common)
    if a.name == "sam":
        return SAM(params, ascent=a.ascent, **common)
    if a.name == "sgd":
        return SGD(params, **common)
    if a.name == "elastic_sgd":
        elastic = {"rho0": a.rho0, "batches_per_epoch": B, "scoping": a.scoping}
        return ElasticSGD(params, comm=topology.cross, mailbox=mailbox, **elastic, **common)
    inner = {"L": a.L, "alpha": a.alpha, "gamma0": a.gamma0, "batches_per_epoch": B, "inner_lr": a.inner_lr}
    if a.inner != "sgd":
        common["weight_decay"], inner["inner_lr"] = 0.0, None
        inner["inner"] = partial(INNERS[a.inner], lr=a.inner_lr, weight_decay=a.weight_decay)
    if a.name == "parle":
        ways = {"reference": a.reference, "inside": a.inside, "payload": a.payload, "eta2": a.eta2, "mu2": a.mu2}
        return Parle(params, rho0=a.rho0, pace=a.pace, mailbox=mailbox, **ways, **groups, **inner, **common)
    return EntropySGD(params, **inner, **common)


def averaged(algorithm, optimizer, rounds):
    """The optimiser, with an average of its weights where section `algorithm` says so, in a run of so many rounds."""
    a = algorithm
    if a.average == "none":
        return optimizer
    start = int(a.average_start * rounds) if a.average == "swa" else 0
    return Averaged(optimizer, a.average, decay=a.average_decay, start=start)
