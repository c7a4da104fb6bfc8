"""Optimisers walked along a problem, to be compared with the oracle to 1e-12."""

import numpy as np
import torch

from helpers import replicas
from helpers.problems import flat, parameters, set_gradients

DROP = 0.5


def trajectory(make, of, n, steps, drop_at):
    """[(y after each step, the reference at the end, the optimiser)] of n replicas; `make(params, comm)` gives it.

    Its rate, or that of the optimiser inside which is annealed in its place, is DROP times the first from drop_at on.
    """

    def replica(a, comm):
        params = parameters(of)
        optimizer = make(params, comm)
        moved = getattr(optimizer, "inner", None) or optimizer
        scheduler = torch.optim.lr_scheduler.MultiStepLR(moved, [drop_at], gamma=DROP)
        path = []
        for k in range(steps):
            set_gradients(params, of.grad(a, k, flat(params)))
            optimizer.step()
            scheduler.step()
            path.append(flat(params))
        with optimizer.at_reference():
            reference = flat(params)
        assert np.array_equal(flat(params), path[-1])
        return path, reference, optimizer

    return replicas.run(n, replica)


def assert_equal(mine, theirs):
    assert np.abs(mine - theirs).max() <= 1e-12 * max(1.0, np.abs(theirs).max())
