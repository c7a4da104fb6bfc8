"""What every rank sees of the topology, as one JSON list on rank 0."""

import json
import sys

import torch

from parle_hpc import Topology

topology = Topology.split(replicas=int(sys.argv[1]))
rank = topology.world.Get_rank()

p = torch.nn.Parameter(torch.zeros(3))
q = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
frozen = torch.nn.Parameter(torch.zeros(1))
p.grad, q.grad = torch.full((3,), float(rank)), torch.full((2, 2), 10.0 * rank, dtype=torch.float64)
topology.average_gradients([p, frozen, q])

# not contiguous, as channels_last weights are
tensors = [
    torch.full((2, 3), float(rank)).t(),
    torch.tensor(rank),
    torch.full((2,), rank + 1, dtype=torch.bfloat16),
    torch.full((1, 2, 2, 2), float(rank)).contiguous(memory_format=torch.channels_last),
]
topology.broadcast(tensors)

mine = {
    "replica": topology.replica.allgather(rank),
    "cross": topology.cross.allgather(rank),
    "replica_index": topology.replica_index,
    "place": topology.place,
    "gradients": [p.grad.unique().tolist(), q.grad.unique().tolist(), frozen.grad],
    "broadcast": [t.float().unique().tolist() for t in tensors],
    "threads": topology.threads,
}
everyone = topology.world.gather(mine)
if rank == 0:
    print(json.dumps(everyone))
