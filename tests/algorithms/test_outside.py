"""Weights that a script changes beside the optimiser's own steps: loaded, masked, clamped, frozen."""

import copy
from functools import partial

import pytest
import torch
from helpers import replicas
from helpers.scripts import MAKE, L, reference, run, weight
from torch.nn.functional import cross_entropy

from parle_hpc import models
from parle_hpc.algorithms.layout import Layout


@pytest.fixture(params=["cpu", "device"], autouse=True)
def where(request, monkeypatch):
    """On a CPU, where a change is noticed at once, and as on a device, which is waited for at a coupling alone."""
    if request.param == "device":
        monkeypatch.setattr(Layout, "on_cpu", False)
    return request.param


every = pytest.mark.parametrize("name", MAKE)


@every
@pytest.mark.parametrize("before", [0, 1, 2, L, L + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_were_loaded_are_the_ones_that_train(name, before, dtype, where):
    """After `before` steps: all states are where they would be, had the weights been so at the start, at rest.

    On a device x^a pulls until the end of the round, where weights of the state's own type are loaded in the middle.
    """
    pulled = where == "device" and name != "elastic_sgd" and before % L and dtype != torch.bfloat16
    close = partial(torch.allclose, other=torch.full((6,), 5.0), atol=0.05 if pulled else 1e-8)
    w = weight(dtype=dtype)
    optimizer = MAKE[name]([w], momentum=0.0)
    optimizer.state_dict()
    run(optimizer, [w], before)
    w.data.fill_(5.0)
    run(optimizer, [w], 2 * L, gradient=0.0)
    assert close(w.detach().float())
    assert close(reference(optimizer, [w]).float())


@every
def test_a_reference_asked_for_after_a_load_is_what_was_loaded(name):
    for before in range(2 * L):
        w = weight()
        optimizer = MAKE[name]([w])
        run(optimizer, [w], before)
        w.data.fill_(5.0)
        assert reference(optimizer, [w]).tolist() == [5.0] * 6
        w.data.fill_(7.0)
        assert reference(optimizer, [w]).tolist() == [7.0] * 6


@every
def test_weights_that_nobody_touched_are_never_taken_for_others(name, where, monkeypatch):
    """Also where a checkpoint of the model is loaded that is what it holds already, and beside validations."""
    torch.manual_seed(0)
    model = models.build("lenet", dropout=0.0)
    params = list(model.parameters())
    optimizer = MAKE[name](params)
    taken = []
    monkeypatch.setattr(type(optimizer), "_take_over", lambda self, changed, live: taken.append(bool(changed.any())))
    for k in range(2 * L + 1):
        images, labels = torch.rand(4, 1, 28, 28), torch.randint(0, 10, (4,))
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if k % 3 == 0:
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            reference(optimizer, params)
            optimizer.state_dict()
    assert not (any(taken) if where == "device" else taken)
    params[3].data[0] += 1e-6
    optimizer.state_dict()
    assert taken.count(True) == 1


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("project", ["mask", "clamp"])
def test_what_is_masked_or_clamped_after_each_step_is_so_in_the_reference(name, project, dtype):
    mask = torch.tensor([0, 1, 0, 1, 1, 0], dtype=dtype)

    def replica(a, comm):
        options = {} if name == "entropy_sgd" else {"comm": comm}
        ws = [weight(dtype=dtype), weight(dtype=dtype)]

        def after():
            with torch.no_grad():
                ws[0].mul_(mask) if project == "mask" else ws[0].clamp_(min=0.9)

        optimizer = MAKE[name](ws, **options)
        for _ in range(6):
            run(optimizer, ws, 3, after, gradient=0.1 * (a + 1))
            x = reference(optimizer, ws).float()
            assert (x[:6][mask == 0] == 0).all() if project == "mask" else (x[:6] >= 0.89).all()

    replicas.run(2, replica)


def test_elements_that_nobody_touches_move_as_they_would_without_a_mask():
    """From the round after the first on, in which blocks are taken over, the elements beside a mask are Parle's."""
    w, alone = weight(), weight()
    masked, plain = MAKE["parle"]([w]), MAKE["parle"]([alone])
    mask = torch.tensor([0.0, 1, 1, 1, 1, 1])

    def after():
        with torch.no_grad():
            w.mul_(mask)

    run(masked, [w], L, after)
    alone.data.copy_(w.detach())
    plain.load_state_dict(masked.state_dict())
    run(masked, [w], 3 * L + 1, after)
    run(plain, [alone], 3 * L + 1)
    assert torch.equal(w[1:], alone[1:])
    assert not torch.equal(w[:1], alone[:1])


@every
@pytest.mark.parametrize("after", [1, L - 1, L])
def test_a_weight_frozen_in_mid_training_stands_still(name, after):
    frozen, moves = weight(), weight()
    optimizer = MAKE[name]([frozen, moves])
    run(optimizer, [frozen, moves], after)
    frozen.requires_grad_(False)
    was = frozen.detach().clone()
    run(optimizer, [frozen, moves], 3 * L)  # its last gradient is gone, as after zero_grad
    assert torch.equal(frozen, was)
    frozen.grad = torch.ones(6)  # and one that was left over does not move it
    optimizer.step()
    assert torch.equal(frozen, was)
    assert not torch.equal(moves, was)
