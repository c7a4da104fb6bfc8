"""The rivals against their oracles: n replicas in one process, float64, tolerance 1e-12."""

import itertools
import re
from functools import partial

import pytest
import torch
from helpers import oracle
from helpers.problems import flat, parameters, problem, set_gradients
from helpers.trajectories import DROP, assert_equal, trajectory

from parle_hpc import DiLoCo, LocalSGD
from parle_hpc.algorithms.sgd import SGD

LR, MU, WD = 0.05, 0.9, 1e-3
OUTER = {"outer_lr": 0.4, "outer_momentum": 0.6}
# where sqrt(v) is small against it, rounding does not grow
ADAMW = {"lr": 0.02, "eps": 1e-2}


WAYS = {
    "diloco": (partial(DiLoCo, lr=LR, weight_decay=WD, **OUTER), {}),
    "overlap": (partial(DiLoCo, lr=LR, weight_decay=WD, overlap=True, **OUTER), {"overlap": True}),
    "local_sgd": (partial(LocalSGD, lr=LR, weight_decay=WD), {"outer_lr": 1.0, "outer_mu": 0.0}),
    "post_local": (
        partial(LocalSGD, lr=LR, weight_decay=WD, post_local_start=7),
        {"outer_lr": 1.0, "outer_mu": 0.0, "post_local_start": 7},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "n", "L"), [
    *itertools.product(["quadratic", "rosenbrock"], [1, 2, 3], [1, 5]),
    ("lenet", 2, 4),
])  # fmt: skip
def test_a_rival_is_its_papers(way, name, n, L):
    of, steps = problem(name), 4 * L + 2
    make, its = WAYS[way]
    results = trajectory(lambda params, comm: make(params, L=L, comm=comm), of, n, steps, drop_at=2 * L)
    settings = {"outer_lr": 0.4, "outer_mu": 0.6, "eta": lambda k: LR * (DROP if k >= 2 * L else 1), **its}
    states = list(oracle.diloco(of.start, of.grad, n, steps, mu=MU, L=L, wd=WD, **settings))
    for a, (path, reference, optimizer) in enumerate(results):
        for mine, (y, _) in zip(path, states, strict=True):
            assert_equal(mine, y[a])
        assert_equal(optimizer.x.numpy(), states[-1][1][a])
        assert_equal(reference, sum(states[-1][1]) / n)
    # one x for all, but where each takes its own part at once
    apart = oracle.spread([optimizer.x.numpy() for *_, optimizer in results])
    assert (apart > 1e-5) if way == "overlap" and n > 1 else apart == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["quadratic", "lenet"])
def test_diloco_with_adamw_inside_is_the_oracles(name, overlap):
    """Its rate is the one that is annealed, and the outer one stays."""
    of, n, L, steps, drop_at = problem(name), 2, 4, 14, 9
    inner = partial(torch.optim.AdamW, **ADAMW)
    made = []

    def adamw():
        made.append(oracle.AdamW(**ADAMW))
        return made[-1]

    def grad(a, k, y):
        made[a].lr = 0.02 * (DROP if k >= drop_at else 1)
        return of.grad(a, k, y)

    def make(params, comm):
        return DiLoCo(params, L=L, inner=inner, overlap=overlap, comm=comm, **OUTER)

    results = trajectory(make, of, n, steps, drop_at)
    settings = {"outer_lr": 0.4, "outer_mu": 0.6, "overlap": overlap, "eta": None, "mu": None}
    states = list(oracle.diloco(of.start, grad, n, steps, L=L, inner=adamw, **settings))
    for a, (path, *_) in enumerate(results):
        for mine, (y, _) in zip(path, states, strict=True):
            assert_equal(mine, y[a])


def test_with_one_step_a_round_local_sgd_is_data_parallel_sgd():
    of, n, steps = problem("rosenbrock"), 3, 20
    results = trajectory(lambda params, comm: LocalSGD(params, lr=LR, L=1, comm=comm), of, n, steps, drop_at=10)
    params = parameters(of)
    optimizer = SGD(params, lr=LR)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10], gamma=DROP)
    for k in range(steps):
        set_gradients(params, sum(of.grad(a, k, flat(params)) for a in range(n)) / n)
        optimizer.step()
        scheduler.step()
        for path, *_ in results:
            assert_equal(path[k], flat(params))


@pytest.mark.parametrize(("wrong", "told"), [
    (partial(DiLoCo, lr=0.1, outer_lr=0.0), "outer_lr is 0.0; it must be above 0"),
    (partial(DiLoCo, lr=0.1, outer_momentum=1.0), "outer_momentum is 1.0; it must be in [0, 1)"),
    (DiLoCo, "lr is None; it must be the rate of the inner SGD where there is no inner"),
    (partial(DiLoCo, lr=0.1, inner=torch.optim.AdamW), "lr is 0.1; it must be left out where inner has a rate"),
    (partial(LocalSGD, lr=0.1, post_local_start=-1), "post_local_start is -1; it must be a whole number of at least 0"),
    (partial(LocalSGD, lr=0.1, L=0), "L is 0; it must be a whole number of at least 1"),
])  # fmt: skip
def test_a_setting_out_of_range_is_refused(wrong, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        wrong([torch.nn.Parameter(torch.ones(2))])
