"""What scripts do to an optimiser beside its own step: load, mask, freeze, convert, copy, and give it to tools."""

import copy
import pickle

import pytest
import torch
from helpers import replicas
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.functional import cross_entropy

from parle_hpc import ElasticSGD, EntropySGD, Parle, models

L = 4
MAKE = {
    "parle": lambda p, **o: Parle(p, lr=0.1, L=L, batches_per_epoch=5, **o),
    "entropy_sgd": lambda p, **o: EntropySGD(p, lr=0.1, L=L, batches_per_epoch=5, **o),
    "elastic_sgd": lambda p, **o: ElasticSGD(p, lr=0.1, batches_per_epoch=5, **o),
}
every = pytest.mark.parametrize("name", MAKE)


def weight(value=1.0, size=6, **options):
    return torch.nn.Parameter(torch.full((size,), value, **options))


def run(optimizer, params, steps, after=lambda: None, gradient=0.1):
    for _ in range(steps):
        for p in params:
            p.grad = torch.full_like(p, gradient) if p.requires_grad else None
        optimizer.step()
        after()


def reference(optimizer, params):
    with optimizer.at_reference():
        return torch.cat([p.detach().flatten() for p in params])


@every
@pytest.mark.parametrize("before", [0, 1, 2, L, L + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_were_loaded_are_the_ones_that_train(name, before, dtype):
    """After `before` steps: all states are where they would be, had the weights been so at the start, at rest."""
    w = weight(dtype=dtype)
    optimizer = MAKE[name]([w], momentum=0.0)
    optimizer.state_dict()
    run(optimizer, [w], before)
    w.data.fill_(5.0)
    run(optimizer, [w], 2 * L, gradient=0.0)
    assert torch.allclose(w.detach().float(), torch.full((6,), 5.0))
    assert torch.allclose(reference(optimizer, [w]).float(), torch.full((6,), 5.0))


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
def test_weights_that_nobody_touched_are_never_taken_for_others(name, monkeypatch):
    """Also where a checkpoint of the model is loaded that is what it holds already, and beside validations."""
    torch.manual_seed(0)
    model = models.build("lenet", dropout=0.0)
    params = list(model.parameters())
    optimizer = MAKE[name](params)
    taken = []
    monkeypatch.setattr(type(optimizer), "_take_over", lambda self, changed, live: taken.append(changed.sum()))
    for k in range(2 * L + 1):
        images, labels = torch.rand(4, 1, 28, 28), torch.randint(0, 10, (4,))
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if k % 3 == 0:
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            reference(optimizer, params)
            optimizer.state_dict()
    assert not taken
    params[3].data[0] += 1e-6
    optimizer.state_dict()
    assert len(taken) == 1


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("project", ["mask", "clamp"])
def test_what_is_masked_or_clamped_after_each_step_is_so_in_the_reference(name, project, dtype):
    w, free = weight(dtype=dtype), weight(dtype=dtype)
    mask = torch.tensor([0, 1, 0, 1, 1, 0], dtype=dtype)

    def after():
        with torch.no_grad():
            w.mul_(mask) if project == "mask" else w.clamp_(min=0.9)

    def replica(a, comm):
        options = {} if name == "entropy_sgd" else {"comm": comm}
        torch.manual_seed(0)
        ws = [torch.nn.Parameter(p.detach().clone()) for p in (w, free)]

        def after():
            with torch.no_grad():
                ws[0].mul_(mask) if project == "mask" else ws[0].clamp_(min=0.9)

        optimizer = MAKE[name](ws, **options)
        for _ in range(6):
            run(optimizer, ws, 3, after, gradient=0.1 * (a + 1))
            x = reference(optimizer, ws).float()
            assert (x[:6][mask == 0] == 0).all() if project == "mask" else (x[:6] >= 0.89).all()
        # and what nobody touches is as it would be without
        other = torch.nn.Parameter(free.detach().clone())
        return ws[1].detach(), other

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
