"""Validation of a fixed network over all ranks: scores and statistics into a file. validates.py DATA OUT"""

import sys

import numpy as np
import torch

from parle_hpc import Topology, models
from parle_hpc.settings import load
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.computing import Computing
from parle_hpc.training.validation import Validation

torch.manual_seed(0)
model = models.build("lenet")
topology = Topology.split(replicas=1)
sources = Sources(load(["--data.path", sys.argv[1]]))
computing = Computing(sources.task, model, torch.device("cpu"))
validation = Validation(computing, sources, 64, at_once=500, comm=topology.world)
test, train, state = validation.validate()
if topology.world.Get_rank() == 0:
    statistics = torch.cat([value.flatten() for name, value in state.items() if "running" in name])
    np.savez(
        sys.argv[2],
        scores=[test.loss, *test.scores.values(), train.loss, *train.scores.values()],
        statistics=statistics,
    )
