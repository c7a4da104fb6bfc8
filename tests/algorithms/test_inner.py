"""Somebody else's optimiser inside Parle and Entropy-SGD: its own step, the pull to x^a, and its state."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import oracle, replicas
from helpers.problems import flat, parameters, problem, set_gradients

from parle_hpc import EntropySGD, Parle
from parle_hpc.checkpoints.resume import parts
from parle_hpc.equations import eq_8a_apart

LR, MU = 0.3, 0.9
ADAMW = partial(torch.optim.AdamW, lr=0.02)
EVERY = {
    "adamw": ADAMW,
    "amsgrad": partial(torch.optim.AdamW, lr=0.02, amsgrad=True),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "plain": partial(torch.optim.SGD, lr=0.05),
    "adafactor": partial(torch.optim.Adafactor, lr=0.02),
    "rprop": torch.optim.Rprop,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
}
SETTINGS = {"L": 4, "alpha": 0.75, "gamma0": 10.0, "rho0": 1.0}


def walk(optimizer, params, of, a, steps, first=0):
    path = []
    for k in range(first, first + steps):
        set_gradients(params, of.grad(a, k, flat(params)))
        optimizer.step()
        path.append(flat(params))
    return path


def test_the_pull_alone():
    y, xa = [torch.tensor([1.0, 4.0])], [torch.tensor([3.0, 4.0])]
    eq_8a_apart(y, xa, eta=0.5, gamma=2.0)
    assert y[0].tolist() == [1.5, 4.0]
    assert xa[0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("reference", ["current", "lagged", "average"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "lenet"])
def test_parle_with_adamw_inside_is_the_oracles(name, n, reference):
    """Past both clips of (9): that of rho lies at eta / (1 - eta)."""
    # where sqrt(v) is small against it, rounding does not grow
    of, steps, eps = problem(name), 13, 1e-2 if name == "lenet" else 1e-8

    def replica(a, comm):
        params = parameters(of)
        kinds = {"batches_per_epoch": 1, "reference": reference, "comm": comm, "inner": partial(ADAMW, eps=eps)}
        optimizer = Parle(params, lr=LR, **SETTINGS, **kinds)
        return walk(optimizer, params, of, a, steps), optimizer

    results = replicas.run(n, replica)
    settings = {"eta": lambda k: LR, "mu": MU, "B": 1, "reference": reference, "rho_clip": LR / (1 - LR)}
    inner = partial(oracle.AdamW, 0.02, eps=eps)
    states = list(oracle.parle(of.start, of.grad, n, steps, inner=inner, **settings, **SETTINGS))
    for a, (path, optimizer) in enumerate(results):
        for k in range(steps):
            close(path[k], states[k][0][a])
        close(optimizer.x.numpy(), states[-1][1][a])
        close(optimizer.z.numpy(), states[-1][2][a])
    assert n == 1 or oracle.spread(states[-1][1]) > 1e-4


def close(mine, theirs):
    assert np.abs(mine - theirs).max() <= 1e-12 * max(1.0, np.abs(theirs).max())


def test_workers_have_one_each():
    of = problem("quadratic")

    def worker(b, comm):
        params = parameters(of)
        settings = {"batches_per_epoch": 2, "replica": comm, "inside": "workers", "inner": ADAMW}
        optimizer = Parle(params, lr=LR, **SETTINGS, **settings)
        for k in range(9):
            set_gradients(params, of.grad(0, k, flat(params), b))
            optimizer.step()
        return flat(params), optimizer.x.numpy()

    results = replicas.run(2, worker)
    settings = {"eta": lambda k: LR, "mu": MU, "B": 2, "inner": partial(oracle.AdamW, 0.02), "rho_clip": LR / (1 - LR)}
    *_, (y, x, _) = oracle.parle(of.start, of.grad, 1, 9, m=2, **settings, **SETTINGS)
    close(results[0][0], y[0])
    for _, mine in results:
        close(mine, x[0])


def test_the_proximal_term_follows_the_inner_rate():
    """A scheduler of the inner optimiser's is eta''s; one of the outer's is eta's."""
    of = problem("quadratic")
    params = parameters(of)
    optimizer = EntropySGD(params, lr=LR, L=100, gamma0=2.0, batches_per_epoch=10**9, inner=EVERY["plain"])
    y = x = of.start.copy()
    for k in range(5):
        eta = optimizer.inner.param_groups[0]["lr"] = 0.05 / (k + 1)
        g = of.grad(0, k, y)
        y = y - eta * g
        y = y - eta / 2 * (y - x)
        set_gradients(params, g)
        optimizer.step()
        close(flat(params), y)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [0, 3, 8])
def test_a_loaded_state_goes_on_bit_for_bit(name, steps):
    of = problem("quadratic")

    def made():
        params = parameters(of)
        return params, Parle(params, lr=LR, batches_per_epoch=2, inner=EVERY[name], **SETTINGS)

    params, optimizer = made()
    walk(optimizer, params, of, 0, steps)
    optimizer.inner.param_groups[0]["lr"] = 0.011
    state = copy.deepcopy(optimizer.state_dict())
    other, again = made()
    with torch.no_grad():
        for mine, theirs in zip(other, params, strict=True):
            mine.copy_(theirs)
    again.load_state_dict(state)
    assert again.inner.param_groups[0]["lr"] == 0.011
    one, two = walk(optimizer, params, of, 0, 9, steps), walk(again, other, of, 0, 9, steps)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("m", [1, 3])
def test_a_checkpoint_of_any_number_of_ranks_goes_on_bit_for_bit(name, m):
    of = problem("quadratic")
    params = parameters(of)
    optimizer = Parle(params, lr=LR, batches_per_epoch=2, inner=EVERY[name], **SETTINGS)
    walk(optimizer, params, of, 0, 8)
    whole = {}
    for place in range(m):
        for part, piece in parts(optimizer, place, m)[0].items():
            whole.setdefault(part, []).append(piece.values)
    whole = {part: np.concatenate(values) for part, values in whole.items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    other = parameters(of)
    again = Parle(other, lr=LR, batches_per_epoch=2, inner=EVERY[name], **SETTINGS)
    again.restore(whole, 8, groups)
    assert np.array_equal(walk(optimizer, params, of, 0, 9, 8), walk(again, other, of, 0, 9, 8))


def test_weights_of_bfloat16_are_moved_in_their_master():
    """As those of float32 are that begin at the same values."""
    torch.manual_seed(0)
    narrow = torch.nn.Parameter(torch.randn(40).bfloat16())
    wide = torch.nn.Parameter(narrow.detach().float())
    mine, theirs = (Parle([p], lr=LR, batches_per_epoch=2, inner=ADAMW, **SETTINGS) for p in (narrow, wide))
    for _ in range(9):
        g = torch.randn(40).bfloat16()
        narrow.grad, wide.grad = g, g.float()
        mine.step()
        theirs.step()
    assert torch.equal(mine.x, theirs.x)
    assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_has_no_gradient_or_needs_none_stands_still(name):
    frozen, unused, used = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = Parle([frozen, unused, used], lr=LR, batches_per_epoch=2, inner=EVERY[name], **SETTINGS)
    frozen.requires_grad_(False)
    frozen.grad = torch.ones(3)
    for _ in range(6):
        used.grad = torch.ones(3)
        optimizer.step()
    assert frozen.tolist() == unused.tolist() == [1.0] * 3
    assert (used < 0.95).all()


def test_weights_changed_from_outside_are_taken_over():
    torch.manual_seed(0)
    for when in (2, 4):
        w = torch.nn.Parameter(torch.randn(6))
        optimizer = Parle([w], lr=LR, batches_per_epoch=2, inner=EVERY["plain"], **SETTINGS)
        for k in range(6):
            if k == when:
                w.data.fill_(5.0)
            w.grad = torch.zeros(6)
            optimizer.step()
            if k >= when:
                assert torch.equal(w.detach(), torch.full((6,), 5.0))
                assert torch.equal(optimizer.x, torch.full((6,), 5.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner": lambda groups: None}, "must give a torch.optim.Optimizer"),
        ({"inner": lambda groups: torch.optim.SGD(groups[0]["params"][:1], lr=1)}, "a SGD over 1 parameters"),
        ({"inner_lr": 0.1}, "inner_lr is 0.1; it must be left out"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1; it must be left out"),
        ({"lr": 1.0}, "lr is 1.0; it must be under 1 with inner"),
    ],
)
def test_a_mistake_is_said(settings, words):
    params = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(ValueError, match=words):
        Parle(params, **{"lr": LR, "batches_per_epoch": 2, "inner": ADAMW, **settings})


def test_a_state_without_or_with_one_inside_is_refused_and_a_copy_too():
    def made(**inner):
        return Parle([torch.nn.Parameter(torch.zeros(2))], lr=LR, batches_per_epoch=2, **inner)

    with pytest.raises(ValueError, match="inner must be left out"):
        made().load_state_dict(made(inner=ADAMW).state_dict())
    with pytest.raises(ValueError, match="inner must be that of an optimiser inside"):
        made(inner=ADAMW).load_state_dict(made().state_dict())
    with pytest.raises(TypeError, match="with another optimiser inside"):
        copy.deepcopy(made(inner=ADAMW))


def test_rho_is_clipped_where_8c_would_overshoot():
    for lr, clip in ((0.01, 0.1), (0.5, 1.0), (0.8, 4.0)):
        p = torch.nn.Parameter(torch.zeros(2))
        optimizer = Parle([p], lr=lr, rho0=0.01, batches_per_epoch=2, inner=ADAMW)
        assert optimizer.rho == pytest.approx(clip)
