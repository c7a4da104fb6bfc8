"""On a convex quadratic without noise: the spectral radius of a round's linear map decides, for any setting."""

import math

import numpy as np
import torch
from helpers import replicas
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from parle_hpc import Parle

H = np.array([0.3, 1.0, 2.5])
MU = 0.9


def round_map(h, n, L, alpha, gamma, rho, eta, inner):
    """The matrix that takes (x, z, v_y, v_x) of n replicas through one round on f = h y^2 / 2."""

    def advance(state):
        x, z, vy, vx = state.reshape(4, n)
        y = x.copy()
        for _ in range(L):
            d = h * y + (y - x) / gamma
            vy = MU * vy + d
            y = y - inner * (d + MU * vy)
            z = alpha * z + (1 - alpha) * y
        e = (x - z) + (x - x.mean()) / rho
        vx = MU * vx + e
        return np.concatenate([x - eta * (e + MU * vx), z, vy, vx])

    return np.stack([advance(basis) for basis in np.eye(4 * n)], axis=1)


def distance_after(rounds, n, drawn):
    """Largest |y - minimum| over the replicas after every round, the replicas starting at different points."""

    def replica(a, comm):
        start = np.random.default_rng(a).standard_normal(3)
        y = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = Parle([y], comm=comm, **drawn)
        with optimizer.at_reference():
            pass  # the replicas begin alike, and each is moved from there
        y.data.copy_(torch.from_numpy(start))
        far = []
        for _ in range(rounds):
            for _ in range(drawn["L"]):
                y.grad = torch.from_numpy(H) * y.detach()
                optimizer.step()
            far.append(y.detach().abs().max().item())
        with optimizer.at_reference():
            return far, y.detach().abs().max().item()

    results = replicas.run(n, replica) if n > 1 else [replica(0, None)]
    return max(far[-1] for far, _ in results), max(x for _, x in results)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    n=st.integers(1, 3),
    L=st.integers(1, 6),
    alpha=st.floats(0, 0.9),
    gamma0=st.floats(0.5, 100),
    rho0=st.floats(0.05, 4),
    B=st.integers(1, 3),
    eta=st.floats(0.01, 1.5),
    inner=st.floats(0.01, 1.0),
)
def test_the_round_map_decides(n, L, alpha, gamma0, rho0, B, eta, inner):
    # after this many rounds gamma and rho stand at their clips
    clipped = math.ceil(math.log(max(gamma0, rho0 * 10, 1)) / -math.log(1 - 1 / (2 * B))) + 1
    maps = [round_map(h, n, L, alpha, 1.0, 0.1, eta, inner) for h in H]
    radius = max(np.abs(np.linalg.eigvals(m)).max() for m in maps)
    assume(radius < 0.985 or radius > 1.02)
    drawn = {"lr": eta, "inner_lr": inner, "momentum": MU, "L": L, "alpha": alpha, "gamma0": gamma0, "rho0": rho0}
    drawn["batches_per_epoch"] = B
    rounds = clipped + math.ceil(13 / abs(math.log(radius)))
    rounds = min(rounds, clipped + 1000)
    replica, reference = distance_after(rounds, n, drawn)
    if radius < 0.985:
        assert max(replica, reference) < 1e-3
    else:
        assert not replica < 10
