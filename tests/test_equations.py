"""Each equation alone, on numbers that can be worked out by hand, and what it leaves alone."""

import math

import pytest
import torch

from parle_hpc import equations as eq

ETA, MU = 0.5, 0.9


def column(*values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def value(tensors):
    return [t.item() for t in tensors]


@pytest.fixture(params=["fused", "foreach"], autouse=True)
def kernels(request, monkeypatch):
    """A device that has fused optimisers, and one that does not."""
    if request.param == "foreach":
        monkeypatch.setattr(eq, "FUSED", [])


def test_inner_step():
    for equation in (eq.eq_6a, eq.eq_8a):
        y, v, g, x = column(3.0), column(1.0), column(2.0), column(1.0)
        equation(y, v, g, x, eta=ETA, gamma=4.0, mu=MU)
        d = 2.0 + (3.0 - 1.0) / 4.0
        assert value(v) == pytest.approx([0.9 + d])
        assert value(y) == pytest.approx([3.0 - ETA * (d + MU * (0.9 + d))])
        assert (value(g), value(x)) == ([2.0], [1.0])


def test_without_momentum_v_is_left_alone():
    y, v, g, x = column(3.0), column(1.0), column(2.0), column(1.0)
    eq.eq_8a(y, v, g, x, eta=ETA, gamma=4.0, mu=0.0)
    assert value(y) == pytest.approx([3.0 - ETA * (2.0 + (3.0 - 1.0) / 4.0)])
    assert (value(v), value(g), value(x)) == ([1.0], [2.0], [1.0])


def test_running_average():
    for equation in (eq.eq_6b, eq.eq_8b):
        z, y = column(1.0), column(3.0)
        equation(z, y, alpha=0.75)
        assert value(z) == pytest.approx([0.75 * 1.0 + 0.25 * 3.0])
        assert value(y) == [3.0]


def test_outer_step_of_entropy_sgd():
    x, v, z = column(3.0), column(1.0), column(2.0)
    eq.eq_6c(x, v, z, eta=ETA, mu=MU)
    assert value(v) == pytest.approx([0.9 + 1.0])
    assert value(x) == pytest.approx([3.0 - ETA * (1.0 + MU * 1.9)])
    assert value(z) == [2.0]


def test_outer_step_of_parle():
    xa, v, z, x = column(3.0), column(1.0), column(2.0), column(2.5)
    eq.eq_8c(xa, v, z, x, eta=ETA, rho=0.25, mu=MU)
    e = (3.0 - 2.0) + (3.0 - 2.5) / 0.25
    assert value(v) == pytest.approx([0.9 + e])
    assert value(xa) == pytest.approx([3.0 - ETA * (e + MU * (0.9 + e))])
    assert (value(z), value(x)) == ([2.0], [2.5])


def test_elastic_sgd():
    xa, v, g, x, mean = column(3.0), column(1.0), column(2.0), column(1.0), column(5.0)
    eq.eq_7a(xa, v, g, x, eta=ETA, rho=0.5, mu=MU)
    d = 2.0 + (3.0 - 1.0) / 0.5
    assert value(xa) == pytest.approx([3.0 - ETA * (d + MU * (0.9 + d))])
    assert (value(g), value(x)) == ([2.0], [1.0])
    eq.eq_7b(x, mean, eta=ETA)
    assert value(x) == pytest.approx([1.0 - ETA * (1.0 - 5.0)])
    assert value(mean) == [5.0]


def test_reference_is_the_mean():
    total = column(12.0, 6.0)
    eq.eq_8d(total, 3)
    assert value(total) == [4.0, 2.0]


def test_scoping():
    assert eq.eq_9(100.0, 0, 10, clip=1.0) == 100.0
    assert eq.eq_9(100.0, 3, 10, clip=1.0) == pytest.approx(100 * 0.95**3)
    assert eq.eq_9(100.0, 10**4, 10, clip=1.0) == 1.0
    assert eq.eq_9(math.inf, 3, 10, clip=0.1) == math.inf
