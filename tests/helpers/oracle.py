"""The paper's algorithms once more, in NumPy float64, for n replicas in one process; nothing of the package is used.

`grad(a, k, y)` is the gradient of replica a at step k; `eta(k)` the learning rate of (8c) at step k.
"""

import numpy as np


def move(p, v, d, lr, mu):
    v = mu * v + d
    return p - lr * (d + mu * v), v


class AdamW:
    """Loshchilov and Hutter 2019: one step of y on g, with its own moments."""

    def __init__(self, lr, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01):
        self.lr, self.beta1, self.beta2, self.eps, self.decay = lr, beta1, beta2, eps, decay
        self.first = self.second = 0.0
        self.steps = 0

    def __call__(self, y, g):
        self.steps += 1
        y = y - self.lr * self.decay * y
        self.first = self.beta1 * self.first + (1 - self.beta1) * g
        self.second = self.beta2 * self.second + (1 - self.beta2) * g * g
        first, second = self.first / (1 - self.beta1**self.steps), self.second / (1 - self.beta2**self.steps)
        return y - self.lr * first / (np.sqrt(second) + self.eps)


def scope(v0, t, B, clip):
    return max(clip, v0 * (1 - 1 / (2 * B)) ** t)


def parle(
    start, grad, n, steps, *, eta, inner_lr=None, mu, L, alpha, gamma0, rho0, B, wd=0.0, reference="current", m=1,
    inner=None, rho_clip=0.1, eta2=None, mu2=0.0,
):  # fmt: skip
    """Yields (y, x, z) after every step, each a list over the replicas; with m > 1 y and z are those of worker 0.

    m > 1 is (10): replica a has m workers, and grad(a, k, y, b) is worker b's gradient. inner() gives what makes the
    inner step, inner_step(y, g) with its rate as `lr`, after which y is pulled to x^a.
    """
    inners = [[inner and inner() for _ in range(m)] for _ in range(n)]
    x, vx = [start.copy() for _ in range(n)], [0 * start for _ in range(n)]
    y, z, vy = ([[start.copy() * s for _ in range(m)] for _ in range(n)] for s in (1, 1, 0))
    before = sum(x) / n
    free, vfree = start.copy(), 0 * start  # x and its momentum where eta'' is free
    for k in range(steps):
        t = k // L
        gamma, rho = scope(gamma0, t, B, 1.0), scope(rho0, t, B, rho_clip)
        for a in range(n):
            for b in range(m):
                g = (grad(a, k, y[a][b], b) if m > 1 else grad(a, k, y[a][b])) + wd * y[a][b]
                if inner:
                    y[a][b] = inners[a][b](y[a][b], g)
                    y[a][b] = y[a][b] - inners[a][b].lr / gamma * (y[a][b] - x[a])
                else:
                    d = g + (y[a][b] - x[a]) / gamma
                    y[a][b], vy[a][b] = move(y[a][b], vy[a][b], d, inner_lr, mu)
                z[a][b] = alpha * z[a][b] + (1 - alpha) * y[a][b]
        if (k + 1) % L == 0:
            zs = [sum(z[a]) / m for a in range(n)]
            now = sum(x) / n
            r = {"current": now, "lagged": before, "average": sum(zs) / n}[reference]
            if eta2 is not None:
                kept = free
                to = sum(zs) / n if reference == "average" else now
                free, vfree = move(free, vfree, free - to, eta2 * n / rho, mu2)
                r = kept if reference == "lagged" else free
            for a in range(n):
                e = (x[a] - zs[a]) + (x[a] - r) / rho
                x[a], vx[a] = move(x[a], vx[a], e, eta(k), mu)
                y[a] = [x[a].copy() for _ in range(m)]
            before = now
        yield [y[a][0] for a in range(n)], list(x), [z[a][0] for a in range(n)]


def elastic_sgd(start, grad, n, steps, *, eta, mu, rho0, B, scoping, wd=0.0):
    """Yields (x^a, x) after every step: a list over the replicas, and the reference."""
    xa, v, x = [start.copy() for _ in range(n)], [0 * start for _ in range(n)], start.copy()
    for k in range(steps):
        rho = scope(rho0, k, B, 0.1) if scoping else rho0
        mean = sum(xa) / n
        for a in range(n):
            d = grad(a, k, xa[a]) + wd * xa[a] + (xa[a] - x) / rho
            xa[a], v[a] = move(xa[a], v[a], d, eta(k), mu)
        x = x - eta(k) * (x - mean)
        yield list(xa), x


def diloco(
    start, grad, n, steps, *, eta, mu, L, outer_lr, outer_mu, wd=0.0, overlap=False, inner=None, post_local_start=0
):
    """Yields (y, x) after every step, each a list over the replicas. Douillard et al. 2023, algorithm 1.

    overlap: Kale et al. 2025, eager updates. inner() as of `parle`. In the first post_local_start steps the replicas
    meet after each.
    """
    inners = [inner and inner() for _ in range(n)]
    y, x = [start.copy() for _ in range(n)], [start.copy() for _ in range(n)]
    v, u, old = ([0 * start for _ in range(n)] for _ in range(3))
    for k in range(steps):
        for a in range(n):
            g = grad(a, k, y[a]) + wd * y[a]
            if inner:
                y[a] = inners[a](y[a], g)
            else:
                y[a], v[a] = move(y[a], v[a], g, eta(k), mu)
        if k < post_local_start or (k + 1) % L == 0:
            new = [x[a] - y[a] for a in range(n)]
            for a in range(n):
                others = [old[b] if overlap else new[b] for b in range(n) if b != a]
                x[a], u[a] = move(x[a], u[a], (new[a] + sum(others)) / n, outer_lr, outer_mu)
            old, y = new, [x[a].copy() for a in range(n)]
        yield list(y), list(x)


def sgd(start, grad, steps, *, eta, mu, wd=0.0):
    """Yields y after every step."""
    y, v = start.copy(), 0 * start
    for k in range(steps):
        y, v = move(y, v, grad(0, k, y) + wd * y, eta(k), mu)
        yield y


def sam(start, grad, m, steps, *, eta, ascent, mu, wd=0.0):
    """Yields w after every step: m ranks, of which rank b has grad(0, k, w, b), and an eps of its own."""
    w, v = start.copy(), 0 * start
    for k in range(steps):
        total = 0
        for b in range(m):
            g = grad(0, k, w, b)
            total = total + grad(0, k, w + ascent * g / np.sqrt((g * g).sum()), b)
        w, v = move(w, v, total / m + wd * w, eta(k), mu)
        yield w


def ema(points, decay):
    """Every point weighs `decay` of the next one's, and the first one has what is left."""
    weights = [(1 - decay) * decay**i for i in range(len(points) - 1)]
    return (1 - sum(weights)) * points[0] + sum(c * p for c, p in zip(weights, reversed(points), strict=False))


def swa(points):
    return sum(points) / len(points)


def spread(vectors):
    return max(float(np.abs(v - vectors[0]).max()) for v in vectors)
