"""Parle with its coupling hidden or blocking, sharded or not: the same bits; and what state and traffic it has.

sharded.py REPLICAS      prints JSON: by reference and payload, for each rank, digests of its replica and counts
"""

import gc
import hashlib
import json
import sys

import numpy as np
import torch
from helpers.blocking import Blocking, BlockingCompressed

from parle_hpc import Parle, Topology
from parle_hpc.coupling import choice
from parle_hpc.coupling.compressed import CompressedReference
from parle_hpc.coupling.reference import MPIReference

SHAPES, L, ROUNDS = [(50, 7), (501,), (3, 3, 3, 5), (2,), (1,)], 3, 4
replicas = int(sys.argv[1])
torch.set_num_threads(1)
topology = Topology.split(replicas=replicas)
NOTHING = torch.zeros(1)
# what is there already is no optimiser's, and need not be gone through again and again
gc.collect()
gc.freeze()


def gradient(shape, k):
    rng = np.random.default_rng([topology.replica_index, k, *shape])
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def alive():
    return {id(o): o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}


def train(blocks, replica, gather, reference, payload):
    choice.MPIReference = Blocking if blocks else MPIReference
    choice.CompressedReference = BlockingCompressed if blocks else CompressedReference
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for p in params:
        p.grad = torch.zeros_like(p)
    gc.collect()
    before = alive()
    settings = {"L": L, "batches_per_epoch": 4, "reference": reference, "weight_decay": 1e-3, "payload": payload}
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}]
    optimizer = Parle(groups, lr=0.1, comm=topology.cross, replica=replica, gather=gather, **settings)
    digest, arrive = hashlib.sha256(), getattr(optimizer._mean, "_arrive", lambda: None)
    for k in range(L * ROUNDS + 1):
        for p in params:
            p.grad.copy_(gradient(p.shape, k))
        optimizer.step()
        if k == 0:
            arrive()
            at_first = optimizer.coupling_bytes_sent
        for tensor in (*params, optimizer.x, optimizer.v_y):
            digest.update(tensor.detach().numpy().tobytes())
    arrive()
    sent = optimizer.coupling_bytes_sent - at_first
    if topology.m > 1:
        # Horovod's thread may hold what it gathered last until it does the next
        topology._hvd.allreduce_(NOTHING, name="nothing")
    gc.collect()
    new = [o for i, o in alive().items() if i not in before]
    storages = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in new if o.numel()}
    own = sum(storages.pop(p.untyped_storage().data_ptr(), 0) for p in params)
    with optimizer.at_reference():
        for p in params:
            digest.update(p.detach().numpy().tobytes())
    N = sum(p.numel() for p in params)
    return digest.hexdigest(), {
        "N": N,
        "own": own,
        "state_floats": sum(storages.values()) / 4,
        "bytes_a_round": sent / ROUNDS,
    }


cases = {
    "hidden, sharded": (False, topology.replica, None),
    "hidden, sharded, gathered by Horovod": (False, topology.replica, topology.gather_shares),
    "hidden, whole": (False, None, None),
    "blocking, sharded": (True, topology.replica, None),
    "blocking, whole": (True, None, None),
}
everything = {}
for reference, payload in (("current", "full"), ("lagged", "full"), ("average", "full"), ("current", "bfloat16")):
    found = {name: train(*case, reference, payload) for name, case in cases.items()}
    digests = topology.replica.allgather([digest for digest, _ in found.values()])
    counts = {name: counted for name, (_, counted) in found.items()}
    everything[f"{reference} {payload}"] = topology.world.gather([digests, counts])
choice.MPIReference, choice.CompressedReference = MPIReference, CompressedReference
if topology.world.Get_rank() == 0:
    print(json.dumps(everything))
