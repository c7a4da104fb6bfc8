"""The mean of the replicas: in full, in bfloat16 with error feedback, and through a device's side stream."""

import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import replicas

from parle_hpc import Parle
from parle_hpc.coupling import reference, transport
from parle_hpc.coupling.compressed import CompressedReference
from parle_hpc.coupling.reference import MPIReference

N, RTOL = 1001, 2.0**-8  # of a rounding to bfloat16, generously


def weights(a, k=0):
    return torch.from_numpy(np.random.default_rng([a, k]).normal(size=N))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_what_rounding_loses_is_sent_later(n):
    """Where the replicas stand still the error shrinks by RTOL with each mean; all replicas have the same bits."""
    exact = sum(weights(a) for a in range(n)) / n

    def replica(a, comm):
        compressed = CompressedReference(comm, weights(a))
        compressed.reset(torch.zeros(N, dtype=torch.float64))
        means = []
        for _ in range(4):
            compressed.start(weights(a))
            means.append(compressed.collect().clone())
        return means

    found = replicas.run(n, replica)
    for means in zip(*found, strict=True):
        assert all(torch.equal(mean, means[0]) for mean in means)
    errors = [(mean - exact).abs().max().item() for mean in found[0]]
    assert 1e-5 < errors[0] < 4 * RTOL
    assert all(later < 4 * RTOL * before for before, later in pairwise(errors))


def test_it_follows_replicas_that_move_and_sends_half():
    n, k_end = 3, 30
    paths = [torch.cumsum(torch.stack([1e-2 * weights(a, k) for k in range(k_end)]), 0) for a in range(n)]

    def replica(a, comm):
        full, half = MPIReference(comm, weights(a)), CompressedReference(comm, weights(a))
        half.reset(weights(a))
        before = half.bytes_sent
        for path in paths[a]:
            for mean in (full, half):
                mean.start(weights(a) + path)
                mean.collect()
            # of what moved since the last mean, not of the weights themselves
            assert (half.mean - full.mean).abs().max() < 1e-2 * 8 * RTOL
        exact = half.exact(weights(a) + paths[a][-1])
        assert torch.equal(exact, full.mean)
        assert not torch.equal(half.mean, exact)
        return full.bytes_sent, half.bytes_sent - before - 2 * (n - 1) * 8 * N // n

    for full, half in replicas.run(n, replica):
        assert half == pytest.approx(full * 2 / 8, rel=1e-2)  # these tensors are float64


def test_start_and_exact_change_nothing_that_is_saved():
    def replica(a, comm):
        compressed = CompressedReference(comm, weights(a))
        compressed.reset(weights(a))
        for k in range(3):
            before = {name: value.clone() for name, value in compressed.state.items()}
            compressed.start(weights(a, k + 1))
            compressed.exact(weights(a, k + 1))
            assert all(torch.equal(value, before[name]) for name, value in compressed.state.items())
            compressed.collect()
            assert not any(torch.equal(value, before[name]) for name, value in compressed.state.items())

    replicas.run(2, replica)


class SlowStaging:
    """What a GPU's side stream does, without a GPU: copies that are over only after some looks at them."""

    def __init__(self, device):
        self._looks, self._waiting = 0, []

    def mirror(self, tensor):
        return torch.full_like(tensor, 77)

    def beside(self):
        return nullcontext()

    def follow(self):
        assert not self._waiting

    def out(self, tensor, mirror):
        self._put(mirror, tensor)
        return mirror

    def back(self, mirror, tensor):
        tensor.copy_(mirror)  # what comes after on the stream sees it

    def _put(self, target, source):
        self._looks = 3
        self._waiting.append((target, source))

    def idle(self):
        self._looks -= 1
        if self._looks > 0:
            return False
        for target, source in self._waiting:
            target.copy_(source)
        self._waiting = []
        return True

    def join(self):
        assert not self._waiting


class OtherStaging(transport.Staging):
    """That of a device which is neither a CPU nor CUDA's."""

    def __init__(self, device):
        super().__init__(torch.device("mps"))

    def mirror(self, tensor):
        host = super().mirror(tensor)
        assert host.data_ptr() != tensor.data_ptr()
        return host


@pytest.mark.parametrize("staging", [SlowStaging, OtherStaging])
@pytest.mark.parametrize("payload", ["full", "bfloat16"])
@pytest.mark.parametrize("kind", ["current", "lagged", "average"])
def test_copies_to_the_host_change_no_bit(kind, payload, staging, monkeypatch):
    def trajectory(a, comm):
        y = torch.nn.Parameter(torch.zeros(N, dtype=torch.float64))
        settings = {"L": 4, "batches_per_epoch": 3, "reference": kind, "payload": payload}
        optimizer = Parle([y], lr=0.1, comm=comm, **settings)
        path = []
        for k in range(14):
            y.grad = y.detach() - weights(a, k)
            optimizer.step()
            path.append(y.detach().clone())
        with optimizer.at_reference():
            path.append(y.detach().clone())
        return torch.stack(path)

    at_once = replicas.run(3, trajectory)
    monkeypatch.setattr(reference, "Staging", staging)
    for one, other in zip(at_once, replicas.run(3, trajectory), strict=True):
        assert torch.equal(one, other)


def test_training_with_half_the_payload_ends_where_the_whole_one_does():
    """On a quadratic, f_a = |y - c_a|^2 / 2, the reference goes to the mean of the c_a."""

    def replica(payload):
        def train(a, comm):
            y = torch.nn.Parameter(torch.zeros(N, dtype=torch.float64))
            optimizer = Parle([y], lr=0.1, L=5, batches_per_epoch=10, comm=comm, payload=payload)
            for _ in range(1500):
                y.grad = y.detach() - weights(a)
                optimizer.step()
            with optimizer.at_reference():
                return y.detach().clone()

        return train

    target = sum(weights(a) for a in range(3)) / 3
    full, half = (replicas.run(3, replica(payload))[0] for payload in ("full", "bfloat16"))
    assert (full - target).abs().max() < 1e-6
    assert (half - target).abs().max() < 1e-6
    assert not torch.equal(full, half)


class Request:
    """Complete at the fifth call, or fails there."""

    def __init__(self, fails=False, after=5):
        self.calls, self._fails, self._after = 0, fails, after

    def Test(self):
        self.calls += 1
        if self._fails and self.calls >= 5:
            raise RuntimeError("the connection is gone")
        return self.calls >= self._after


def in_turn(*requests):
    """The steps of a reduction that waits for one request after the other."""
    for request in requests:
        yield request.Test


def wait_until(true):
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(transport.LONGEST)
    assert true()


def test_every_step_is_taken_while_nobody_asks_and_nothing_is_called_after_the_last():
    first, second = Request(), Request()
    travelling = transport.Travelling(in_turn(first, second))
    wait_until(lambda: "travelling" not in {thread.name for thread in threading.enumerate()})
    assert (first.calls, second.calls) == (5, 5)
    assert travelling.over()
    assert (first.calls, second.calls) == (5, 5)


def test_it_looks_at_once_after_a_step_and_less_and_less_often_where_none_comes(monkeypatch):
    """A small vector's steps follow each other, and a large one's looks take no time from the mini-batches."""
    pauses, moving = [], transport.Travelling._move
    monkeypatch.setattr(transport.Travelling, "_move", lambda travelling: None)
    travelling = transport.Travelling(in_turn(*(Request() for _ in range(3)), Request(after=20)))
    monkeypatch.setattr(transport.time, "sleep", pauses.append)
    moving(travelling)
    doubled = [min(transport.SHORTEST * 2**k, transport.LONGEST) for k in range(19)]
    assert pauses == pytest.approx([*doubled[:3], *doubled[:4], *doubled[:4], *doubled])


@pytest.mark.filterwarnings("error")
def test_what_goes_wrong_in_the_thread_is_raised_where_the_training_asks():
    travelling = transport.Travelling(in_turn(Request(), Request(fails=True)))
    wait_until(lambda: "travelling" not in {thread.name for thread in threading.enumerate()})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the connection is gone"):
            travelling.over()


def test_a_mean_that_never_arrives_ends_the_script_with_a_line():
    script = (
        "from parle_hpc.cluster.waiting import be_patient; from parle_hpc.coupling.transport import Travelling; "
        "be_patient(0.2); Travelling(iter([lambda: False]))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith("parle_hpc: waited 0 s for a mean under way at the end; another rank has not come")
