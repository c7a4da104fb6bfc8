"""The optimisers against the oracle: n replicas in one process, float64, tolerance 1e-12."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import oracle, replicas
from helpers.problems import flat, parameters, problem, set_gradients
from helpers.trajectories import DROP, assert_equal, trajectory

from parle_hpc import ElasticSGD, EntropySGD, Parle
from parle_hpc.algorithms.sgd import SGD

LR, MU, WD = 0.1, 0.9, 1e-3


def eta_of(drop_at):
    return lambda k: LR * (DROP if k >= drop_at else 1.0)


@pytest.mark.parametrize("reference", ["current", "lagged", "average"])
@pytest.mark.parametrize(("name", "n", "L"), [
    *itertools.product(["quadratic", "rosenbrock"], [1, 2, 3], [1, 5, 25]),
    *itertools.product(["lenet"], [1, 2, 3], [1, 5]),
])  # fmt: skip
def test_parle_is_the_papers(name, n, L, reference):
    of, steps = problem(name), 4 * L + 1
    settings = {"L": L, "alpha": 0.75, "gamma0": 100.0, "rho0": 1.0}

    def make(params, comm):
        kinds = {"reference": reference, "comm": comm}
        return Parle(params, lr=LR, batches_per_epoch=2, weight_decay=WD, **settings, **kinds)

    results = trajectory(make, of, n, steps, drop_at=2 * L)
    settings.update(eta=eta_of(2 * L), inner_lr=LR, mu=MU, B=2, wd=WD, reference=reference)
    states = list(oracle.parle(of.start, of.grad, n, steps, **settings))
    for a, (path, newest, optimizer) in enumerate(results):
        for k in range(steps):
            assert_equal(path[k], states[k][0][a])
        assert_equal(optimizer.x.numpy(), states[-1][1][a])
        assert_equal(optimizer.z.numpy(), states[-1][2][a])
        assert_equal(newest, sum(states[-1][1]) / n)
    # or every elastic term would be 0, and the test empty
    assert n == 1 or oracle.spread(states[-1][1]) > 1e-3 * (name != "rosenbrock")


@pytest.mark.parametrize("mu2", [0.0, 0.5])
@pytest.mark.parametrize("reference", ["current", "lagged", "average"])
@pytest.mark.parametrize(("name", "n"), [("quadratic", 1), ("quadratic", 3), ("rosenbrock", 2)])
def test_a_free_eta2_is_8d_in_general(name, n, reference, mu2):
    """x is a state of its own, which follows the mean; at the end it goes on as the next coupling would have it."""
    of, L, steps, B = problem(name), 4, 17, 2
    settings = {"L": L, "alpha": 0.75, "gamma0": 100.0, "rho0": 1.0, "eta2": 0.1, "mu2": mu2, "reference": reference}
    results = trajectory(
        lambda params, comm: Parle(params, lr=LR, batches_per_epoch=B, comm=comm, **settings), of, n, steps, 1000
    )
    states = list(oracle.parle(of.start, of.grad, n, steps, eta=lambda k: LR, inner_lr=LR, mu=MU, B=B, **settings))
    mean = sum(states[-1][1]) / n
    for a, (path, newest, optimizer) in enumerate(results):
        for mine, (y, *_) in zip(path, states, strict=True):
            assert_equal(mine, y[a])
        x, v = optimizer.x8d.numpy(), optimizer.v8d.numpy()
        assert_equal(newest, oracle.move(x, v, x - mean, 0.1 * n / optimizer.rho, mu2)[0])
        assert np.abs(newest - mean).max() > 1e-4 * (name != "rosenbrock")


@pytest.mark.parametrize("reference", ["current", "lagged", "average"])
def test_eta2_of_rho_over_n_is_the_mean(reference):
    """With rho at its clip eta'' = rho/n is the default, to rounding."""
    of, n = problem("quadratic"), 3
    settings = {"lr": 0.02, "L": 3, "rho0": 0.1, "batches_per_epoch": 2, "reference": reference}
    paths = [
        trajectory(lambda params, comm, eta2=eta2: Parle(params, comm=comm, eta2=eta2, **settings), of, n, 15, 1000)
        for eta2 in (None, 0.1 / n)
    ]
    for (path, newest, _), (other, its, _) in zip(*paths, strict=True):
        assert_equal(path[-1], other[-1])
        assert_equal(newest, its)


def test_scoping_goes_past_both_clips():
    of, steps = problem("quadratic"), 40
    settings = {"L": 2, "alpha": 0.75, "gamma0": 100.0, "rho0": 1.0}
    results = trajectory(
        lambda params, comm: Parle(params, lr=LR, batches_per_epoch=1, comm=comm, **settings), of, 2, steps, 1000
    )
    states = list(oracle.parle(of.start, of.grad, 2, steps, eta=lambda k: LR, inner_lr=LR, mu=MU, B=1, **settings))
    for a, (path, _, optimizer) in enumerate(results):
        assert (optimizer.gamma, optimizer.rho) == (1.0, 0.1)
        assert_equal(path[-1], states[-1][0][a])
    assert oracle.spread(states[-1][1]) > 1e-3


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "lenet"])
def test_entropy_sgd_is_the_papers(name):
    of, steps = problem(name), 16
    settings = {"L": 5, "alpha": 0.75, "gamma0": 100.0}

    def make(params, comm):
        return EntropySGD(params, lr=LR, batches_per_epoch=2, inner_lr=0.05, weight_decay=WD, **settings)

    ((path, newest, _),) = trajectory(make, of, 1, steps, drop_at=10)
    settings.update(eta=eta_of(10), inner_lr=0.05, mu=MU, B=2, wd=WD, rho0=math.inf)
    states = list(oracle.parle(of.start, of.grad, 1, steps, **settings))
    for k in range(steps):
        assert_equal(path[k], states[k][0][0])
    assert_equal(newest, states[-1][1][0])


@pytest.mark.parametrize("scoping", [True, False])
@pytest.mark.parametrize(("name", "n"), [("quadratic", 1), ("quadratic", 3), ("rosenbrock", 2), ("lenet", 2)])
def test_elastic_sgd_is_the_papers(name, n, scoping):
    of, steps = problem(name), 12
    settings = {"rho0": 1.0, "scoping": scoping}

    def make(params, comm):
        return ElasticSGD(params, lr=LR, batches_per_epoch=2, weight_decay=WD, comm=comm, **settings)

    results = trajectory(make, of, n, steps, drop_at=8)
    states = list(oracle.elastic_sgd(of.start, of.grad, n, steps, eta=eta_of(8), mu=MU, B=2, wd=WD, **settings))
    for a, (path, newest, _) in enumerate(results):
        for k in range(steps):
            assert_equal(path[k], states[k][0][a])
        assert_equal(newest, states[-1][1])
    assert n == 1 or oracle.spread(states[-1][0]) > 1e-4


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock"])
@pytest.mark.parametrize("reference", ["current", "lagged", "average"])
def test_workers_are_those_of_equation_10(name, reference):
    """One deputy with two workers, each a thread: their z meet at the coupling and nowhere else."""
    of, steps = problem(name), 13
    settings = {"L": 4, "alpha": 0.75, "gamma0": 100.0, "rho0": 1.0, "reference": reference}

    def worker(b, comm):
        params = parameters(of)
        optimizer = Parle(params, lr=LR, batches_per_epoch=2, replica=comm, inside="workers", **settings)
        for k in range(steps):
            set_gradients(params, of.grad(0, k, flat(params), b))
            optimizer.step()
        return flat(params), optimizer

    results = replicas.run(2, worker)
    settings.update(eta=lambda k: LR, inner_lr=LR, mu=MU, B=2)
    *_, (y, x, z) = oracle.parle(of.start, of.grad, 1, steps, m=2, **settings)
    assert_equal(results[0][0], y[0])
    assert_equal(results[0][1].z.numpy(), z[0])
    for _, optimizer in results:
        assert_equal(optimizer.x.numpy(), x[0])
    assert np.abs(results[0][0] - results[1][0]).max() > 1e-5


def test_without_coupling_and_proximal_term_it_is_torchs_sgd():
    of = problem("quadratic")
    mine = trajectory(
        lambda p, c: Parle(p, lr=LR, L=1000, gamma0=1e300, batches_per_epoch=9, weight_decay=WD), of, 1, 20, 99
    )
    torchs = trajectory(lambda p, c: SGD(p, lr=LR, momentum=MU, weight_decay=WD), of, 1, 20, 99)
    assert_equal(mine[0][0][-1], torchs[0][0][-1])


@pytest.mark.parametrize("n", [1, 3])
def test_without_elastic_term_it_is_entropy_sgd(n):
    of = problem("quadratic")
    # for n = 1 `current` has no elastic term by itself
    rho0 = 1.0 if n == 1 else math.inf
    mine = trajectory(lambda p, c: Parle(p, lr=LR, L=4, rho0=rho0, batches_per_epoch=2, comm=c), of, n, 13, 99)
    alone = trajectory(lambda p, c: EntropySGD(p, lr=LR, L=4, batches_per_epoch=2), of, n, 13, 99)
    for (path, _, optimizer), (other, _, _) in zip(mine, alone, strict=True):
        assert_equal(path[-1], other[-1])
        assert n == 1 or optimizer.coupling_bytes_sent == 0 or math.isinf(rho0)


def test_with_one_inner_step_it_moves_as_elastic_sgd():
    """L = 1, 1/gamma = 0, alpha = 0, mu = 0: x^a moves as (7a) with eta eta' for eta and rho eta' for rho."""
    of, n, inner = problem("quadratic"), 3, 0.2
    limit = {"L": 1, "gamma0": 1e300, "alpha": 0.0, "momentum": 0.0, "batches_per_epoch": 10**17}
    mine = trajectory(lambda p, c: Parle(p, lr=LR, inner_lr=inner, comm=c, **limit), of, n, 15, 99)
    xa = [of.start.copy() for _ in range(n)]
    for k in range(15):
        x = sum(xa) / n
        xa = [v - LR * inner * (of.grad(a, k, v) + (v - x) / inner) for a, v in enumerate(xa)]
    for a in range(n):
        assert_equal(mine[a][2].x.numpy(), xa[a])
    assert oracle.spread(xa) > 1e-3


def test_replicas_on_identical_data_are_one_replica():
    of = problem("quadratic")

    class Same:
        shapes, start = of.shapes, of.start

        def grad(self, a, k, y):
            return of.grad(0, k, y)

    def make(p, c):
        return Parle(p, lr=LR, L=4, batches_per_epoch=2, comm=c)

    three, one = trajectory(make, Same(), 3, 13, 99), trajectory(make, Same(), 1, 13, 99)
    for path, _, _ in three:
        assert_equal(path[-1], one[0][0][-1])


@pytest.mark.parametrize("payload", ["full", "bfloat16"])
def test_a_loaded_optimiser_continues_bit_for_bit(payload):
    of = problem("quadratic")
    for reference in ("current", "lagged", "average"):

        def make(params, comm, reference=reference):
            return Parle(params, lr=LR, L=4, batches_per_epoch=2, reference=reference, comm=comm, payload=payload)

        def replica(a, comm):
            params = parameters(of)
            optimizer = make(params, comm)
            for k in range(20):
                if k == 10:
                    with optimizer.at_reference():  # a validation changes nothing of what comes
                        pass
                    state, weights = optimizer.state_dict(), flat(params)
                    params = parameters(of)
                    optimizer = make(params, comm)
                    for p, w in zip(
                        params, np.split(weights, np.cumsum([p.numel() for p in params])[:-1]), strict=True
                    ):
                        p.data.copy_(torch.from_numpy(w).view(p.shape))
                    optimizer.load_state_dict(state)
                set_gradients(params, of.grad(a, k, flat(params)))
                optimizer.step()
            return flat(params)

        resumed = replicas.run(2, replica)
        whole = trajectory(make, of, 2, 20, 99)
        for a in range(2):
            assert np.array_equal(resumed[a], whole[a][0][-1])
