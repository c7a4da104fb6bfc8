"""States saved, loaded, refused, converted, copied, and given to other people's tools."""

import copy
import pickle

import pytest
import torch
from helpers import replicas
from helpers.scripts import MAKE, L, reference, run, weight
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.functional import cross_entropy

every = pytest.mark.parametrize("name", MAKE)


def channels_last(model):
    return model.to(memory_format=torch.channels_last)


def network():
    torch.manual_seed(0)
    relu, pool = torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    layers = torch.nn.Conv2d(3, 6, 3), relu, torch.nn.Conv2d(6, 4, 3), pool, torch.nn.Flatten()
    return torch.nn.Sequential(*layers).double()


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        cross_entropy(model(images), torch.tensor([1, 2])).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["parle", "elastic_sgd"])
def test_a_state_of_contiguous_weights_goes_on_in_channels_last_ones(name):
    plain = network()
    optimizer = MAKE[name](plain.parameters())
    train(plain, optimizer, L + 2)
    other = channels_last(copy.deepcopy(plain))
    again = MAKE[name](other.parameters())
    again.load_state_dict(optimizer.state_dict())
    assert torch.allclose(train(plain, optimizer, 3), train(other, again, 3), rtol=0, atol=1e-9)
    x, mine = (o.state_dict()["state"][0]["x"] for o in (optimizer, again))
    assert torch.allclose(x, mine, rtol=0, atol=1e-9)
    assert x.shape == next(plain.parameters()).shape


def test_a_memory_format_may_change_before_the_first_step_and_not_after():
    model, plain = network(), network()
    optimizer, other = MAKE["parle"](model.parameters()), MAKE["parle"](plain.parameters())
    channels_last(model)
    assert torch.allclose(train(model, optimizer, L + 1), train(plain, other, L + 1), rtol=0, atol=1e-9)
    channels_last(plain)
    with pytest.raises(RuntimeError, match="another type, device or memory format"):
        train(plain, other, 1)


@every
@pytest.mark.parametrize("steps", [0, 2])
def test_weights_of_another_type_are_refused(name, steps):
    w = weight()
    optimizer = MAKE[name]([w])
    run(optimizer, [w], steps)
    w.data = w.data.half()
    with pytest.raises(RuntimeError, match="another type, device or memory format"):
        run(optimizer, [w], 1)


@every
def test_a_refused_state_leaves_everything_as_it_was(name):
    w, other = weight(), weight(size=7)
    optimizer, stranger = MAKE[name]([w], momentum=0.5), MAKE[name]([other], weight_decay=0.7)
    run(optimizer, [w], L + 1)
    run(stranger, [other], 3)
    before = copy.deepcopy(optimizer.state_dict())
    good = copy.deepcopy(before)
    bad = [
        stranger.state_dict(),
        {**good, "state": {}},
        {**good, "state": {0: {k: v for k, v in good["state"][0].items() if k != "x"}}},
        {**good, "param_groups": good["param_groups"] * 2},
        torch.optim.SGD([w], lr=0.3).state_dict(),
    ]
    for state in bad:
        with pytest.raises(ValueError, match=r"\S"):
            optimizer.load_state_dict(state)
        assert same(optimizer.state_dict(), before)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_what_a_state_lacks_is_said_by_name():
    w = weight()
    optimizer = MAKE["parle"]([w])
    run(optimizer, [w], 2)
    state = optimizer.state_dict()
    state["state"][0]["z"] = torch.zeros(404)
    with pytest.raises(ValueError, match=r"does not fit this Parle: z must be of shape \(6,\), and is \(404,\)"):
        optimizer.load_state_dict(state)


@every
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("steps", [0, 2, L])
def test_a_copy_goes_on_alike_and_apart(name, way, steps):
    w = weight()
    optimizer = MAKE[name]([w])
    run(optimizer, [w], steps)
    other, twin = way((w, optimizer))
    run(optimizer, [w], L + 1)
    after = w.detach().clone()
    run(twin, [other], L + 1)
    assert torch.equal(other, after)
    assert torch.equal(reference(twin, [other]), reference(optimizer, [w]))
    run(twin, [other], 1)
    assert torch.equal(w, after)


def test_a_coupled_one_cannot_be_copied():
    def replica(a, comm):
        optimizer = MAKE["parle"]([weight()], comm=comm)
        with pytest.raises(TypeError, match="cannot be copied or pickled; take its state_dict"):
            copy.deepcopy(optimizer)

    replicas.run(2, replica)


def test_the_state_of_another_replica_is_refused():
    def replica(a, comm):
        w = weight()
        optimizer = MAKE["parle"]([w], comm=comm)
        run(optimizer, [w], L)
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        state["replica"]["index"] = 1 - a
        with pytest.raises(ValueError, match=f"is that of replica {1 - a}, and this rank is of replica {a}"):
            optimizer.load_state_dict(state)

    replicas.run(2, replica)


@every
def test_torchs_distributed_checkpoint_makes_no_step_and_brings_everything_back(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    params = list(model.parameters())
    optimizer = MAKE[name](params)
    for steps in (0, L + 1):
        run(optimizer, params, steps)
        weights = copy.deepcopy(model.state_dict())
        state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
        assert optimizer.steps == steps
        assert same(model.state_dict(), weights)
    run(optimizer, params, L)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    other = MAKE[name](params)
    set_optimizer_state_dict(model, other, state)
    run(other, params, L)
    assert same(model.state_dict(), expected)
