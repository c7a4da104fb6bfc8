"""The rivals against the oracle, float64, tolerance 1e-12."""

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.mpi import passes
from helpers.problems import flat, parameters, problem, set_gradients

from parle_hpc import SAM

LR, MU, WD = 0.1, 0.9, 1e-3


def assert_equal(mine, theirs):
    assert np.abs(mine - theirs).max() <= 1e-12 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "lenet"])
@pytest.mark.parametrize("ascent", [0.05, 0.2])
def test_sam_is_the_papers(name, ascent):
    of, params = problem(name), parameters(problem(name))
    optimizer = SAM(params, lr=LR, ascent=ascent, weight_decay=WD)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.5)
    settings = {"eta": lambda k: LR * (0.5 if k >= 8 else 1), "ascent": ascent, "mu": MU, "wd": WD}
    for k, w in enumerate(oracle.sam(of.start, of.grad, 1, 12, **settings)):
        set_gradients(params, of.grad(0, k, flat(params)))
        with optimizer.perturbed():
            set_gradients(params, of.grad(0, k, flat(params)))
        optimizer.step()
        scheduler.step()
        assert_equal(flat(params), w)
    assert optimizer.steps == 12


@pytest.mark.cluster
def test_the_ranks_of_sam_have_an_eps_each_and_one_reduction():
    assert passes(2, "sam.py", "quadratic", "rosenbrock", "lenet").split() == ["quadratic", "rosenbrock", "lenet"]


def test_sam_gives_the_weights_back_and_moves_nothing_without_gradient():
    torch.manual_seed(0)
    w, still, frozen = (torch.nn.Parameter(torch.randn(5), requires_grad=i < 2) for i in range(3))
    optimizer = SAM([w, still, frozen], lr=0.1, ascent=0.3)
    before = [p.detach().clone() for p in (w, still, frozen)]
    w.grad = torch.randn(5)
    eps = 0.3 * w.grad / w.grad.norm()
    with optimizer.perturbed():
        assert torch.allclose(w, before[0] + eps)
        assert torch.equal(still, before[1])
        assert torch.equal(frozen, before[2])
        assert w.grad is None
        with pytest.raises(RuntimeError, match="step inside perturbed"):
            optimizer.step()
    assert all(map(torch.equal, (w, still, frozen), before))
    # nor where all gradients are 0, or there is none
    w.grad = torch.zeros(5)
    for _ in range(2):
        with optimizer.perturbed():
            assert torch.equal(w, before[0])
    w.grad = torch.ones(5)
    optimizer.step()
    assert torch.equal(still, before[1])
    assert not torch.equal(w, before[0])


def test_the_radius_of_sam_must_be_one():
    with pytest.raises(ValueError, match="ascent is 0; it must be above 0"):
        SAM([torch.nn.Parameter(torch.zeros(1))], lr=0.1, ascent=0)
