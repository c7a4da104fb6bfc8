"""State on flat buffers over real networks: layouts, types, groups, missing gradients."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from parle_hpc import ElasticSGD, EntropySGD, Parle, models
from parle_hpc.algorithms import layout as layouts


def network(**options):
    torch.manual_seed(0)
    return models.build("lenet", dropout=0.0, **options)


def train(model, optimizer, steps=6):
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        images = torch.rand(8, 1, 28, 28, generator=generator).to(dtype)
        labels = torch.randint(0, 10, (8,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images).float() if dtype == torch.bfloat16 else model(images), labels).backward()
        optimizer.step()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def test_blocks_cover_every_element_once(monkeypatch):
    monkeypatch.setattr(layouts, "CACHE_BLOCK", 1000)
    params = list(network().parameters())
    layout = layouts.Layout([{"params": params[:3]}, {"params": params[3:]}])
    seen = [torch.zeros(p.numel()) for p in params]
    for group, pieces in layout.blocks:
        assert sum(stop - start for _, start, stop in pieces) <= 1000
        for i, start, stop in pieces:
            assert (i < 3) == (group == 0)
            seen[i][start:stop] += 1
    assert all((s == 1).all() for s in seen)


def test_size_of_blocks_changes_nothing_but_the_last_bits(monkeypatch):
    results = []
    for size in (1 << 30, 777):
        monkeypatch.setattr(layouts, "CACHE_BLOCK", size)
        model = network().double()
        results.append(train(model, Parle(model.parameters(), lr=0.05, L=2, batches_per_epoch=5)))
    assert torch.allclose(*results, rtol=0, atol=1e-13)


def test_channels_last_weights_train_alike():
    plain, other = network().double(), network().double().to(memory_format=torch.channels_last)
    results = [train(m, Parle(m.parameters(), lr=0.01, L=2, batches_per_epoch=5)) for m in (plain, other)]
    assert torch.allclose(*results, rtol=0, atol=1e-9)


def test_bfloat16_weights_have_a_float32_master():
    model = network().bfloat16()
    optimizer = Parle(model.parameters(), lr=0.01, L=4, batches_per_epoch=5)
    train(model, optimizer, steps=3)
    assert optimizer.x.dtype == torch.float32
    live = torch.cat([p.detach().flatten() for p in model.parameters()])
    masters = [entry["_master"].flatten() for entry in optimizer.state_dict()["state"].values()]
    assert torch.equal(live, torch.cat(masters).bfloat16())
    # steps too small for bfloat16 add up in the master
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Parle([weight], lr=1e-4, momentum=0.0, L=1000, gamma0=1e30, batches_per_epoch=5)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.tolist() == pytest.approx([0.99] * 4, abs=0.004)


def test_a_parameter_without_gradient_stands_still_but_z_and_x_go_on():
    still, moving = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = Parle([still, moving], lr=0.1, L=3, batches_per_epoch=5)
    still.grad, moving.grad = torch.ones(3), torch.ones(2)
    optimizer.step()
    after_one = still.detach().clone()
    still.grad, moving.grad = None, torch.ones(2)
    z = optimizer.z[:3].clone()
    optimizer.step()
    assert torch.equal(still, after_one)
    assert torch.allclose(optimizer.z[:3], 0.75 * z + 0.25 * after_one)
    assert not torch.equal(moving, torch.ones(2))
    moving.grad = None
    optimizer.step()
    # the coupling resets y also where there was no gradient
    assert torch.equal(still, optimizer.x[:3])
    assert not torch.equal(still, after_one)


def test_gradients_are_left_as_they_were():
    for make in (
        lambda p: Parle(p, lr=0.1, L=1, batches_per_epoch=5, weight_decay=0.1),
        lambda p: ElasticSGD(p, lr=0.1, batches_per_epoch=5, weight_decay=0.1),
    ):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.full((3,), 2.0)
        make([p]).step()
        assert p.grad.tolist() == [2.0, 2.0, 2.0]


def test_groups_have_their_own_rates_and_schedulers_leave_eta_prime_alone():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [a]}, {"params": [b], "lr": 0.01, "weight_decay": 1.0}]
    optimizer = Parle(groups, lr=0.1, momentum=0.0, L=10, gamma0=1e30, batches_per_epoch=5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(2):
        a.grad, b.grad = torch.ones(2), torch.zeros(2)
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.0025])
    assert a.tolist() == pytest.approx([1 - 2 * 0.1] * 2)
    assert b.tolist() == pytest.approx([0.99**2] * 2)


def test_more_parameters_are_refused_with_a_reason():
    optimizer = EntropySGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, batches_per_epoch=5)
    with pytest.raises(RuntimeError, match="its state is flat"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", -1),
        ("momentum", 1),
        ("L", 0),
        ("alpha", 1.5),
        ("gamma0", 0),
        ("rho0", -1),
        ("batches_per_epoch", 0),
        ("reference", "mean"),
        ("inside", "worker"),
        ("weight_decay", -1),
        ("inner_lr", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} is"):
        Parle([torch.nn.Parameter(torch.ones(2))], **{"lr": 0.1, "batches_per_epoch": 5, setting: value})


def test_parameters_that_cannot_be_flat_are_refused():
    wide = torch.ones(4, 4)
    for params, reason in (
        ([torch.nn.Parameter(wide[:, :2])], "view with gaps"),
        ([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], "floating-point"),
        ([torch.nn.Parameter(wide), torch.nn.Parameter(wide.to("meta"))], "one device"),
    ):
        with pytest.raises(ValueError, match=reason):
            Parle(params, lr=0.1, batches_per_epoch=5)


def test_weights_that_are_broadcast_after_the_constructor_count():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Parle([p], lr=0.1, L=1, batches_per_epoch=5)
    p.data.fill_(5.0)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [5.0, 5.0]


def test_lenet_has_the_papers_size():
    assert sum(p.numel() for p in network().parameters()) == 132_220
    with pytest.raises(ValueError, match="unknown model 'lenett'; known: lenet"):
        models.build("lenett")
    copy.deepcopy(network(num_classes=7, in_channels=3))(torch.zeros(2, 3, 28, 28))
