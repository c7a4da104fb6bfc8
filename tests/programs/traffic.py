"""What leaves this cluster's hosts in a round of Parle. traffic.py REPLICAS      prints JSON"""

import json
import sys
import time

import torch
from helpers.namespaces import link_bytes

from parle_hpc import Parle, Topology

N, L, ROUNDS = 500_000, 4, 5


torch.set_num_threads(1)
topology = Topology.split(replicas=int(sys.argv[1]))
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(N))
torch.manual_seed(topology.replica_index)
optimizer = Parle([weight], lr=0.1, L=L, batches_per_epoch=10, comm=topology.cross, replica=topology.replica)
weight.grad = torch.randn(N)


def rounds(count):
    for _ in range(count * L):
        optimizer.step()
        time.sleep(0.01)
    optimizer.finish()
    topology.world.Barrier()


rounds(2)
before = link_bytes()
topology.world.Barrier()
rounds(ROUNDS)
# one rank speaks for its host
mine = link_bytes() - before if topology.local_rank == 0 else 0
payload = topology.world.allreduce(optimizer.coupling_bytes_sent)
total = topology.world.allreduce(mine)
if topology.world.Get_rank() == 0:
    print(json.dumps({"N": N, "counted_a_round": total / ROUNDS, "payload_a_round": payload / (ROUNDS + 3)}))
