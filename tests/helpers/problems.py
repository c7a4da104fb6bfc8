"""Problems with a gradient for every replica and step: its own fixed noise on a common function, in float64.

Each has `shapes` of its parameters, `start` (flat), and `grad(a, k, y, b=0)` for replica a, step k and worker b.
"""

import copy
import functools

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from parle_hpc import models


class Noisy:
    """The fixed noise of each replica, worker and step."""

    def __init__(self, start, noise=0.05, cycle=7):
        self.start = start
        self._noise = noise * np.random.default_rng(5).standard_normal((4, 2, cycle, start.size))

    def noise(self, a, k, b):
        return self._noise[a, b, k % self._noise.shape[2]]


class Quadratic(Noisy):
    shapes = ((3, 2), (4,))

    def __init__(self):
        rng = np.random.default_rng(1)
        super().__init__(rng.standard_normal(10))
        basis, _ = np.linalg.qr(rng.standard_normal((10, 10)))
        self.H = basis @ np.diag(np.linspace(0.2, 2.0, 10)) @ basis.T
        self.minimum = rng.standard_normal(10)

    def grad(self, a, k, y, b=0):
        return self.H @ (y - self.minimum) + self.noise(a, k, b)


class Rosenbrock(Noisy):
    """Scaled by 1/100, so that the paper's step sizes are stable on it."""

    shapes = ((2,), (1,))

    def __init__(self):
        super().__init__(np.array([-1.2, 1.0, 0.7]), noise=0.01)

    def grad(self, a, k, y, b=0):
        u, w = y[:-1], y[1:]
        g = np.zeros_like(y)
        g[:-1] += -4 * u * (w - u * u) - 0.02 * (1 - u)
        g[1:] += 2 * (w - u * u)
        return g + self.noise(a, k, b)


class LeNet:
    """LeNet in float64 without dropout on fixed random mini-batches; worker b has its own half of the mini-batch."""

    def __init__(self, batch=8):
        torch.manual_seed(3)
        self.model = models.build("lenet", dropout=0.0).double()
        self.shapes = tuple(tuple(p.shape) for p in self.model.parameters())
        self.start = flat(self.model.parameters())
        self._images = torch.rand(4, 5, batch, 1, 28, 28, dtype=torch.float64)
        self._labels = torch.randint(0, 10, (4, 5, batch))

    def half(self, a, k, b, halves):
        share = slice(None) if halves == 1 else slice(b * 4, b * 4 + 4)
        return self._images[a, k % 5, share], self._labels[a, k % 5, share]

    def grad(self, a, k, y, b=0, halves=1):
        model = copy.deepcopy(self.model)
        assign(model.parameters(), y)
        images, labels = self.half(a, k, b, halves)
        cross_entropy(model(images), labels).backward()
        return flat(p.grad for p in model.parameters())


@functools.cache
def problem(name):
    return {"quadratic": Quadratic, "rosenbrock": Rosenbrock, "lenet": LeNet}[name]()


def flat(tensors):
    return np.concatenate([t.detach().numpy().ravel() for t in tensors]).astype(np.float64)


@torch.no_grad()
def assign(params, values):
    offset = 0
    for p in params:
        p.copy_(torch.from_numpy(values[offset : offset + p.numel()]).view(p.shape))
        offset += p.numel()


def parameters(of):
    """New parameters that hold the problem's start, float64."""
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in of.shapes]
    assign(params, of.start)
    return params


def set_gradients(params, values):
    offset = 0
    for p in params:
        p.grad = torch.from_numpy(values[offset : offset + p.numel()].reshape(p.shape).copy())
        offset += p.numel()
