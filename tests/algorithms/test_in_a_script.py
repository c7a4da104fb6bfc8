"""What else scripts do with an optimiser: rates that are tensors or 0, torch.compile, steps at the wrong place."""

import pytest
import torch
from helpers.scripts import MAKE, L, run, weight

from parle_hpc import Parle

every = pytest.mark.parametrize("name", MAKE)


def test_a_rate_that_is_a_tensor_is_annealed_alone():
    w = weight()
    optimizer = Parle([w], lr=torch.tensor(0.1), L=100, momentum=0.0, gamma0=1e30, batches_per_epoch=5)
    optimizer.param_groups[0]["lr"].mul_(0.0)
    run(optimizer, [w], 1, gradient=1.0)
    assert w.tolist() == pytest.approx([0.9] * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be above 0 where inner_lr, which never changes, is not given"),
        ({"L": 7.5}, "L is 7.5; it must be a whole number"),
        ({"L": True}, "L is True; it must be a whole number"),
    ],
)
def test_settings_that_would_go_wrong_later_are_refused_now(options, message):
    with pytest.raises(ValueError, match=message):
        Parle([weight()], **{"lr": 0.1, "batches_per_epoch": 5, **options})


def test_a_rate_of_zero_with_an_inner_rate_warms_up():
    w = weight()
    optimizer = Parle([w], lr=0.0, inner_lr=0.1, L=2, batches_per_epoch=5)
    run(optimizer, [w], 3)
    assert not torch.equal(w, weight())


@every
def test_nothing_trains_inside_the_reference(name):
    w = weight()
    optimizer = MAKE[name]([w])
    run(optimizer, [w], 2)
    state = optimizer.state_dict()
    with optimizer.at_reference():
        for call in (optimizer.step, lambda: optimizer.load_state_dict(state)):
            with pytest.raises(RuntimeError, match="inside at_reference: the model holds the reference"):
                call()
    optimizer.step()


@every
def test_a_compiled_training_step_is_the_same(name):
    """torch.compile around the step: the optimiser runs as it is, and the rest is compiled."""
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="eager")):
        w = weight()
        optimizer = MAKE[name]([w])

        def step(w=w, optimizer=optimizer):
            loss = (w * w).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        step = wrap(step)
        for _ in range(2 * L + 1):
            step()
        results.append(w.detach().clone())
    assert torch.equal(*results)


@every
def test_sparse_gradients_are_refused_in_one_sentence(name):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = MAKE[name](embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients are not supported"):
        optimizer.step()
