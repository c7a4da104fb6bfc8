"""A torch profiler trace of one round, in which the equations and the communication have their names.

chrome://tracing or https://ui.perfetto.dev show the file.
"""

import functools
from contextlib import contextmanager, nullcontext

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..algorithms import elastic_sgd, parle
from ..algorithms.rounds import Rounds
from ..cluster.topology import Topology
from ..coupling import compressed, reference
from ..coupling.gather import Gather

# where the names are looked up when they are called
NAMED = [
    *((parle, name) for name in ("eq_8a", "eq_8b", "eq_8c")),
    *((elastic_sgd, name) for name in ("eq_7a", "eq_7b")),
    (reference, "eq_8d"),
    (compressed, "eq_8d"),
    (reference.MPIReference, "start"),
    (reference.MPIReference, "poll"),
    (reference.MPIReference, "collect"),
    (Gather, "__call__"),
    (Topology, "follow_backward"),
    (Topology, "average_gradients"),
    (Topology, "gather_shares"),
    (Rounds, "_couple"),
]


def named(owner, name):
    """owner.name as a function that is a range of this name in the trace."""
    function = getattr(owner, name)
    label = name if name.startswith("eq_") else f"{getattr(owner, '__name__', owner)}.{name}"

    @functools.wraps(function)
    def traced(*arguments, **settings):
        with record_function(label):
            return function(*arguments, **settings)

    return traced


@contextmanager
def tracing(path):
    """Write a Chrome trace of the body to `path`, whose folder exists."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in NAMED]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    try:
        for owner, name, _ in kept:
            setattr(owner, name, named(owner, name))
        with profile(activities=activities) as profiler:
            yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    profiler.export_chrome_trace(str(path))


def trace_of(wanted, which, folder, rank, round):
    """Context of a round, a trace of it where one is wanted and it is round `which`, which should not be the first.

    The first round has warming up in it.
    """
    if not wanted or round != which:
        return nullcontext()
    folder.mkdir(exist_ok=True)
    return tracing(folder / f"{rank}.json")
