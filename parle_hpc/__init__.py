"""Parle: training deep networks on clusters with almost no communication.

    from parle_hpc import Parle, EntropySGD, ElasticSGD, Topology

The optimisers, the equations and the models need torch alone; Topology needs mpi4py and Horovod once it is used.
"""

import importlib

_HOME = {"Parle": "optim", "EntropySGD": "optim", "ElasticSGD": "optim", "Topology": "topology"}
__all__ = ["ElasticSGD", "EntropySGD", "Parle", "Topology"]


def __getattr__(name):
    # torch takes seconds to load, and a mistake on the command line should be answered at once
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
