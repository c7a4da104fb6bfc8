"""SAM on the ranks of one replica against the oracle in each rank's own process, float64, gradients in buckets.

sam.py PROBLEM...       prints the problems that were equal
"""

import sys

import numpy as np
import torch
from helpers import oracle
from helpers.problems import LeNet, flat, parameters, problem

from parle_hpc import SAM, Topology

STEPS, DROP, WD, ASCENT = 13, 8, 1e-3, 0.05
torch.set_num_threads(1)
topology = Topology.split(replicas=1)
topology._gradient_mean.least = 8  # bytes: they leave as soon as they are there
m, b = topology.m, topology.place


def check(name):
    of = problem(name)
    # BatchNorm over the 4 samples of half a mini-batch lets rounding grow: smaller steps keep it under the tolerance
    rate = 0.02 if isinstance(of, LeNet) else 0.1
    halves = {"halves": m} if isinstance(of, LeNet) else {}

    def grad(a, k, w, b):
        return of.grad(a, k, w, b, **halves)

    params = parameters(of)
    optimizer = SAM(params, lr=rate, ascent=ASCENT, weight_decay=WD)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [DROP], gamma=0.5)

    def backward(k):
        """A backward pass of a function that has this gradient where the weights are."""
        given = torch.from_numpy(grad(0, k, flat(params), b))
        (torch.cat([p.reshape(-1) for p in params]) * given).sum().backward()

    def eta(k):
        return rate * (0.5 if k >= DROP else 1)

    for k, w in enumerate(oracle.sam(of.start, grad, m, STEPS, eta=eta, ascent=ASCENT, mu=0.9, wd=WD)):
        optimizer.zero_grad()
        backward(k)
        with optimizer.perturbed():
            topology.follow_backward(params)
            backward(k)
            assert topology._gradient_mean._buckets.sent
        topology.average_gradients(params)
        optimizer.step()
        scheduler.step()
        assert np.abs(flat(params) - w).max() <= 1e-12 * max(1, np.abs(w).max()), (name, k)
    everyone = topology.world.allgather(flat(params).tobytes())
    assert len(set(everyone)) == 1
    if b == 0:
        print(name)


for name in sys.argv[1:]:
    check(name)
