"""Parle: training deep networks on clusters with almost no communication.

    from parle_hpc import Parle, EntropySGD, ElasticSGD, DiLoCo, LocalSGD, SAM
    from parle_hpc import Session, Task, Topology, batchnorm_of_reference

The optimisers, the equations and the models need torch alone; Topology needs mpi4py and Horovod once it is used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algorithms.diloco import DiLoCo
    from .algorithms.elastic_sgd import ElasticSGD
    from .algorithms.entropy_sgd import EntropySGD
    from .algorithms.local_sgd import LocalSGD
    from .algorithms.parle import Parle
    from .algorithms.sam import SAM
    from .cluster.topology import Topology
    from .tasks.task import Task
    from .training.batchnorm import batchnorm_of_reference
    from .training.session import Session

_HOME = {
    "Parle": "algorithms.parle",
    "Session": "training.session",
    "EntropySGD": "algorithms.entropy_sgd",
    "ElasticSGD": "algorithms.elastic_sgd",
    "DiLoCo": "algorithms.diloco",
    "LocalSGD": "algorithms.local_sgd",
    "SAM": "algorithms.sam",
    "Task": "tasks.task",
    "Topology": "cluster.topology",
    "batchnorm_of_reference": "training.batchnorm",
}
__all__ = [
    "SAM",
    "DiLoCo",
    "ElasticSGD",
    "EntropySGD",
    "LocalSGD",
    "Parle",
    "Session",
    "Task",
    "Topology",
    "batchnorm_of_reference",
]


def __getattr__(name: str) -> object:
    # torch takes seconds to load, and a mistake on the command line should be answered at once
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
