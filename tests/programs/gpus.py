"""What ranks decide about GPUs that there are not: gpus.py CASES, a JSON list of [replicas, NCCL, GPUs of each rank].

A GPU is a number on the bus. Rank 0 prints a JSON list: in each case of each rank what it takes with "auto", or the
line that refuses it, and whether its gradients go through the host.
"""

import json
import os
import sys
from functools import partial
from types import SimpleNamespace

import horovod.torch as hvd
import torch

from parle_hpc import Topology
from parle_hpc.errors import BadInput


def properties(number):
    return SimpleNamespace(name="GPU", uuid="", pci_domain_id=0, pci_bus_id=mine[number], pci_device_id=0)


def device(topology):
    try:
        topology.device("cpu")
        topology.device("auto")
        return str(topology.device("auto"))
    except BadInput as error:
        return str(error)


torch.cuda.is_available, torch.cuda.device_count = lambda: bool(mine), lambda: len(mine)
torch.cuda.get_device_properties, torch.cuda.set_device = properties, lambda number: None
decided = []
for replicas, nccl, seen in json.loads(sys.argv[1]):
    hvd.nccl_built = partial(bool, nccl)
    mine = seen[int(os.environ["OMPI_COMM_WORLD_RANK"])]
    topology = Topology.split(replicas=replicas)
    decided.append(topology.world.gather([device(topology), topology.gather is None]))
if topology.world.Get_rank() == 0:
    print(json.dumps(decided))
