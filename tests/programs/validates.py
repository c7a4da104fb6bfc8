"""Validation of a fixed network over all ranks: scores and statistics into a file. validates.py DATA OUT"""

import sys

import numpy as np
import torch

from parle_hpc import Topology, models
from parle_hpc.data.store import open_dataset
from parle_hpc.training.validation import Validation

torch.manual_seed(0)
model = models.build("lenet")
topology = Topology.split(replicas=1)
test, train, state = Validation(model, open_dataset(sys.argv[1]), 64, torch.device("cpu"), topology.world).validate()
if topology.world.Get_rank() == 0:
    statistics = torch.cat([value.flatten() for name, value in state.items() if "running" in name])
    np.savez(sys.argv[2], scores=[*test, *train], statistics=statistics)
