"""The optimisers on a device that has no values: nothing leaves it, and nothing asks for one but once a round.

With values, what notices changes from outside on a device is in test_outside.py.
"""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from helpers import replicas
from helpers.problems import flat, parameters, problem, set_gradients
from helpers.scripts import L
from helpers.syncs import Only, Syncs
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from parle_hpc import SAM, ElasticSGD, EntropySGD, Parle, equations
from parle_hpc.algorithms import outside
from parle_hpc.algorithms.layout import Layout
from parle_hpc.algorithms.sgd import SGD
from parle_hpc.cluster.gradients import GradientMean
from parle_hpc.coupling import choice
from parle_hpc.coupling.reference import SerialReference

ROUNDS = 3
SETTINGS = {"lr": 0.1, "L": L, "batches_per_epoch": 5}
ROUNDED = {
    "parle": partial(Parle, **SETTINGS, weight_decay=0.1),
    "lagged": partial(Parle, **SETTINGS, reference="lagged"),
    "average": partial(Parle, **SETTINGS, reference="average"),
    "no momentum": partial(Parle, **SETTINGS, momentum=0.0),
    "entropy_sgd": partial(EntropySGD, **SETTINGS, weight_decay=0.1),
    "sgd inside": partial(Parle, **SETTINGS, inner=partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "adamw inside": partial(Parle, **SETTINGS, inner=partial(torch.optim.AdamW, lr=0.1)),
}
OTHERS = {
    "elastic_sgd": partial(ElasticSGD, lr=0.1, batches_per_epoch=5, weight_decay=0.1),
    "sgd": partial(SGD, lr=0.1, weight_decay=0.1),
    "sam": partial(SAM, lr=0.1, weight_decay=0.1),
}


class Network(nn.Sequential):
    """With BatchNorm, a parameter that never has a gradient, and one that needs none; in two groups."""

    def __init__(self, dtype):
        with torch.device("meta"):
            super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))
            self.unused, self.frozen = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(4), requires_grad=False)
        self.to(dtype)

    def groups(self):
        params = list(self.parameters())
        return [{"params": params[:4]}, {"params": params[4:], "lr": 0.01}]


def waits(make, dtype=torch.float32, answer=0, **device):
    """How often each step asks for a value; nothing but meta tensors may be met on the way."""
    found = []
    with Only("meta", **device), Syncs("meta", answer) as syncs:
        model = Network(dtype)
        optimizer = make(model.groups())
        for _ in range(ROUNDS * L):
            images, labels = (torch.zeros(size, device="meta") for size in ((2, 1, 6, 6), (2,)))
            optimizer.zero_grad()
            cross_entropy(model(images.to(dtype)), labels.long()).backward()
            optimizer.averaged = True  # as average_gradients says
            before = syncs.calls.total()
            with optimizer.perturbed() if isinstance(optimizer, SAM) else nullcontext():
                cross_entropy(model(images.to(dtype)), labels.long()).backward()
            optimizer.step()
            found.append(syncs.calls.total() - before)
        with optimizer.at_reference():
            model(images.to(dtype))
    return found


@pytest.mark.parametrize("name", ROUNDED)
def test_a_round_waits_once_at_its_end(name):
    """Where weights are seen to be changed, to each group: from then on a copy of them tells, and nobody waits."""
    device = {"numbers": name == "adamw inside"}
    assert waits(ROUNDED[name], **device) == [*[0] * (L - 1), 1] * ROUNDS
    once, *rest = waits(ROUNDED[name], answer=1, **device)[L - 1 :: L]
    assert (once, rest) == (3, [0] * (ROUNDS - 1))


@pytest.mark.parametrize("name", {**ROUNDED, **OTHERS})
def test_nothing_waits_where_no_step_looks_at_sums(name):
    """As Elastic-SGD's, or with weights of bfloat16, which are copies of their master."""
    make, dtype = {**ROUNDED, **OTHERS}[name], torch.float32 if name in OTHERS else torch.bfloat16
    assert waits(make, dtype, numbers=name == "adamw inside") == [0] * (ROUNDS * L)


class Calls(TorchDispatchMode):
    """Counts the operations that start a kernel on a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in (*ROUNDED, *OTHERS) if not name.endswith(" inside")])
def test_a_step_is_as_many_calls_for_many_weights_as_for_few(name):
    """A call costs a GPU's host some 10 microseconds, and a network has hundreds of tensors."""

    def calls(tensors):
        params = [nn.Parameter(torch.zeros(4, 3, device="meta")) for _ in range(tensors)]
        optimizer, found = {**ROUNDED, **OTHERS}[name](params), []
        with Syncs("meta", 0):
            for _ in range(L + 1):
                for p in params:
                    p.grad = torch.zeros_like(p)
                if isinstance(optimizer, SAM):
                    with optimizer.perturbed():
                        pass
                with Calls() as counter:
                    optimizer.step()
                found.append(counter.count)
        return found

    assert calls(40)[1:] == calls(2)[1:]


class Two:
    """A communicator of two."""

    def Get_size(self):
        return 2

    def Get_rank(self):
        return 0


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("parle", {"comm": Two()}),
        ("average", {"comm": Two()}),
        ("parle", {"replica": Two(), "gather": lambda whole, mine: None}),
    ],
)
def test_nor_does_what_is_done_for_other_ranks(name, others, monkeypatch):
    """Beside the mean's own way, which goes through the host, and the weights at the start, which are told once."""
    monkeypatch.setattr(choice, "MPIReference", lambda comm, like, *_: SerialReference(like))
    once, *rest = waits(partial(ROUNDED[name], **others))
    assert [once, *rest] == [1, *[0] * (L - 2), 1, *[*[0] * (L - 1), 1] * (ROUNDS - 1)]


@pytest.mark.parametrize("name", ["parle", "lagged", "average", "no momentum", "adamw inside", "elastic_sgd"])
def test_a_device_computes_what_a_cpu_does(name, monkeypatch):
    of = problem("quadratic")

    def replica(a, comm):
        params = parameters(of)
        optimizer = {**ROUNDED, **OTHERS}[name](params, comm=comm)
        for k in range(ROUNDS * L + 1):
            set_gradients(params, of.grad(a, k, flat(params)))
            optimizer.step()
        return torch.cat([vector for vector, _ in optimizer.saved().values() if vector.dtype == torch.float64])

    on_cpu = replicas.run(2, replica)
    monkeypatch.setattr(Layout, "on_cpu", False)
    monkeypatch.setattr(equations, "FUSED", [])
    for mine, theirs in zip(replicas.run(2, replica), on_cpu, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_gradients_are_averaged_on_the_device():
    params = [nn.Parameter(torch.zeros(size, device="meta")) for size in (3, 4)]
    start, finish = (lambda buffer, name: None), (lambda handle: None)
    mean = GradientMean(start, finish, (0, 1), 0, None, on_host=False, least=math.inf)
    for p in params:
        p.grad = torch.zeros_like(p)
    for waits in (1, 0):
        # the first time what the ranks tell is read at once, before anything is made of it
        with Only("meta"), Syncs("meta") as syncs:
            mean(params)
        assert syncs.calls.total() == waits


@pytest.mark.parametrize(
    ("call", "counted"),
    [
        (lambda t: t.sum().item(), "item"),
        (lambda t: t.cpu(), "cpu"),
        (lambda t: t.to("cpu"), "to"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: t.numpy(), "numpy"),
        (lambda t: bool(t.any()), "__bool__"),
        (lambda t: range(t.sum()), "__index__"),
        (lambda t: t[t > 0], "index"),
        (lambda t: torch.equal(t, t), "equal"),
        (lambda t: f"{t.sum()}", "_local_scalar_dense"),
        (lambda t: torch.tensor([1.0], device=t.device), "tensor"),
        (lambda t: t.add_(1).float().to(torch.float64).copy_(t)[:2].clone(), None),
        (lambda t: t.to("cpu", non_blocking=True), None),
    ],
)
def test_what_waits_is_counted_once_also_on_a_cpu(call, counted):
    with Syncs() as syncs:
        call(torch.ones(3, dtype=torch.int64))
    assert [name.split(" in algorithms/test_devices.py:")[0] for name in syncs.calls.elements()] == [counted][
        : bool(counted)
    ]


def test_a_tensor_elsewhere_is_found():
    t = torch.zeros(3, device="meta")
    for call in (lambda: torch.zeros(2), lambda: t + torch.tensor(1.0), lambda: torch.ones(()).add(1)):
        with pytest.raises(AssertionError, match=r"on \{'cpu'\} in algorithms/test_devices.py"), Only("meta"):
            call()


def test_what_is_summed_together_is_all_of_it_and_no_more_than_fits(monkeypatch):
    monkeypatch.setattr(outside, "JOINED", 5)
    vectors = torch.arange(16.0).split([3, 3, 9, 1])
    assert [v.tolist() for v in outside.few(vectors)] == [v.tolist() for v in vectors]
    assert [len(v) for v in outside.few(torch.arange(8.0).split([2, 3, 3]))] == [5, 3]
