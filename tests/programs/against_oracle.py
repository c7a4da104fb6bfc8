"""An optimiser under MPI against the oracle in each rank's own process: n x m ranks, float64.

against_oracle.py REPLICAS PROBLEM gradients|workers|elastic|rival REFERENCE...    prints which were equal
"""

import hashlib
import sys

import numpy as np
import torch
from helpers import oracle
from helpers.problems import LeNet, flat, parameters, problem, set_gradients

from parle_hpc import DiLoCo, ElasticSGD, LocalSGD, Parle, Topology

L, B, ROUNDS = 4, 2, 3

replicas, name, inside, *references = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
topology = Topology.split(replicas=replicas)
n, m, a, b = topology.n, topology.m, topology.replica_index, topology.place
of = problem(name)
# BatchNorm over the 4 samples of half a mini-batch lets rounding grow: smaller steps keep it under the tolerance
LR = 0.02 if isinstance(of, LeNet) else 0.1

if isinstance(of, LeNet):

    def grad(a, k, y, b=0):
        return of.grad(a, k, y, b, halves=m)
else:
    grad = of.grad


def averaged(a, k, y):
    return sum(grad(a, k, y, b) for b in range(m)) / m


def eta(k):
    return LR * (0.5 if k >= 2 * L else 1)


def check(reference):
    params, steps = parameters(of), ROUNDS * L + 1
    if inside == "elastic":
        settings = {"rho0": 1.0, "scoping": reference == "scoping"}
        optimizer = ElasticSGD(params, lr=LR, batches_per_epoch=B, comm=topology.cross, **settings)
        states = list(oracle.elastic_sgd(of.start, averaged, n, steps, eta=eta, mu=0.9, B=B, **settings))
        # (y, x) of each replica: the live weights are x^a, and x is the same for all
        states = [(xa, [x] * n) for xa, x in states]
    elif inside == "rival":
        groups = {"comm": topology.cross, "replica": topology.replica, "L": L}
        if reference == "local_sgd":
            optimizer = LocalSGD(params, lr=LR, post_local_start=3, **groups)
            settings = {"outer_lr": 1.0, "outer_mu": 0.0, "post_local_start": 3}
        else:
            settings = {"overlap": reference == "overlap"}
            optimizer = DiLoCo(params, lr=LR, outer_lr=0.4, outer_momentum=0.6, **groups, **settings)
            settings.update(outer_lr=0.4, outer_mu=0.6)
        states = list(oracle.diloco(of.start, averaged, n, steps, eta=eta, mu=0.9, L=L, **settings))
    else:
        settings = {"L": L, "alpha": 0.75, "gamma0": 100.0, "rho0": 1.0, "reference": reference}
        groups = {"comm": topology.cross, "replica": topology.replica, "inside": inside}
        optimizer = Parle(params, lr=LR, batches_per_epoch=B, **groups, **settings)
        settings.update(eta=eta, inner_lr=LR, mu=0.9, B=B)
        if inside == "workers":
            states = oracle.parle(of.start, grad, n, steps, m=m, **settings)
        else:
            states = oracle.parle(of.start, averaged, n, steps, **settings)
        states = [(y, x) for y, x, _ in states]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * L], gamma=0.5)

    for k in range(steps):
        set_gradients(params, grad(a, k, flat(params), b))
        if inside != "workers":
            topology.average_gradients(params)
        optimizer.step()
        scheduler.step()
        y, x = states[k]
        state = flat(params).tobytes() + optimizer.x.numpy().tobytes()
        same = topology.replica.allgather(hashlib.sha256(state).hexdigest())
        assert inside == "workers" or len(set(same)) == 1, f"ranks of replica {a} differ after step {k}"
        if inside != "workers" or b == 0:
            assert np.abs(flat(params) - y[a]).max() <= 1e-12 * max(1, np.abs(y[a]).max()), (a, k)
        assert np.abs(optimizer.x.numpy() - x[a]).max() <= 1e-12 * max(1, np.abs(x[a]).max()), (a, k)

    y, x = states[-1]
    with optimizer.at_reference():
        assert np.abs(flat(params) - sum(x) / n).max() <= 1e-12
    # a rival's x is one for all, but its y is a step on
    assert n == 1 or oracle.spread(y if inside in ("elastic", "rival") else x) > 1e-4
    if topology.world.Get_rank() == 0:
        print(reference)


for reference in references:
    check(reference)
