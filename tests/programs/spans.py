"""How gradients travel over these hosts in 1 and in 2 replicas, as a JSON list: the ranks that are a host's first, and
for each rank how many buckets are on their way after a backward pass, and the mean."""

import json

import torch

from parle_hpc import Topology

torch.set_num_threads(1)
found = []
for replicas in (1, 2):
    topology = Topology.split(replicas=replicas)
    params = [torch.nn.Parameter(torch.zeros(300_000)) for _ in range(3)]
    topology.follow_backward(params)
    (topology.world.Get_rank() * sum(p.sum() for p in params)).backward()
    buckets = topology._gradient_mean._buckets
    under_way = 0 if buckets is None else len(buckets.sent)
    topology.average_gradients(params)
    means = sorted({value for p in params for value in p.grad.unique().tolist()})
    found.append([[seat.node for seat in topology.seats], topology.world.gather([under_way, means])])
if topology.world.Get_rank() == 0:
    print(json.dumps(found))
