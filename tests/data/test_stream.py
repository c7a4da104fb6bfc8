"""What is made one ahead, on a stream or by a thread: the same, in its order, errors in their turn, and a clean end."""

import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from helpers.loading import Drawing, FirstOf, InOrder, Noisy, Part
from helpers.mpi import ENVIRONMENT, PROGRAMS

from parle_hpc.data import moving, threaded
from parle_hpc.data.ahead import Ahead, ahead_of
from parle_hpc.data.fetch import Key
from parle_hpc.data.loader import Loader, sweep
from parle_hpc.data.split import MiniBatches
from parle_hpc.data.stream import Stream, stream_of
from parle_hpc.data.threaded import AHEAD, FetchingThread

CPU = torch.device("cpu")


def batches():
    return MiniBatches(np.arange(40), 12, seed=3, replica=1)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "fetches ahead"]


class Plain:
    """Samples without chance."""

    def __getitem__(self, index):
        return {"index": index, "double": 2.0 * index}


class Still(Noisy):
    """Draws for the mini-batch, but not for its samples; a part of several."""

    draws = False

    def __init__(self, part, dataset=None):
        super().__init__(dataset or Plain())
        self.part = part

    def prepare(self, batch, draw):
        return batch if draw is None else super().prepare(batch, draw)


def still():
    return {part: Still(part) for part in ("train", "validation")}


def test_each_thing_is_begun_before_the_one_before_it_is_given_out_and_none_sooner():
    begun, given = [], []
    for item in Stream(CPU).map(lambda item: begun.append(item) or item, iter(range(5))):
        given.append(item)
        assert begun == list(range(min(item + 2, 5)))
    assert given == list(range(5))
    assert list(Stream(CPU).map(str, [])) == []


def test_an_error_comes_in_its_turn_and_nothing_is_begun_after_it():
    begun = []

    def make(item):
        begun.append(item)
        return 1 // (2 - item)

    found = Stream(CPU).map(make, count())
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert begun == [0, 1, 2]


def test_a_loader_one_ahead_gives_the_same_for_any_steps_and_draws_the_same():
    alone = Loader(Noisy(Drawing()), batches(), CPU, accumulate=2)
    ahead = Loader(Noisy(Drawing()), batches(), CPU, accumulate=2, stream=Stream(CPU), first=2)
    before = random.getstate(), torch.get_rng_state()
    for step in (2, 3, 4, 9, 10, 3, 0, 1):
        same(ahead(step), alone(step))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    failing = Loader(FirstOf(Missing()), InOrder(), CPU, stream=Stream(CPU))
    assert failing(0) == [(1, 0)]
    for step in (1, 1, 2):
        with pytest.raises(FileNotFoundError, match=f"{step}.png"):
            failing(step)
    assert failing(0) == [(1, 0)]


class Missing:
    """Has only its first sample."""

    def __getitem__(self, index):
        if index:
            raise FileNotFoundError(2, "no such picture", f"{index}.png")
        return index


class Recorder:
    """torch.cuda, which writes down what is asked of it."""

    def __init__(self):
        self.log = []

    def Stream(self, device):
        return Recorded("side", self.log)

    def current_stream(self):
        return Recorded("main", self.log)

    @contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("back")


class Recorded:
    def __init__(self, name, log):
        self.name, self._log = name, log

    def wait_stream(self, other):
        self._log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self._log.append(f"event {sum(line.startswith('event') for line in self._log)} of {self.name}")
        return self._log[-1]

    def wait_event(self, event):
        self._log.append(f"{self.name} waits for {event}")


def test_on_a_gpu_each_is_made_behind_what_trains_and_waited_for_before_it_is_given_out(monkeypatch):
    """So that no memory is written that is still read, nor read before it is written."""
    cuda = Recorder()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    stream = stream_of(torch.device("cuda", 0))
    for item in stream.map(lambda item: cuda.log.append(f"make {item}") or item, range(3)):
        cuda.log.append(f"train {item}")

    def made(item):
        return ["side waits for main", "on side", f"make {item}", f"event {item} of side", "back"]

    def trained(item):
        return [f"main waits for event {item} of side", f"train {item}"]

    assert cuda.log == [*made(0), *made(1), *trained(0), *made(2), *trained(1), *trained(2)]
    assert stream_of(CPU) is None


def test_a_thread_gives_the_same_also_beside_sweeps_and_leaves_nothing():
    alone = still()
    for stream in (None, Stream(CPU)):
        ahead, sources = Ahead(still(), 0, False), still()
        loader = Loader(sources["train"], batches(), CPU, accumulate=2, ahead=ahead, stream=stream, first=5)
        plain = Loader(alone["train"], batches(), CPU, accumulate=2)
        indices = [np.arange(k, k + 3) for k in range(0, 24, 3)]
        for step in range(5, 9):
            same(loader(step), plain(step))
            assert len(threads()) == 1
            for part in ("validation", "train"):
                swept = sweep(sources[part], indices[:step], CPU, ahead, stream)
                same(list(swept), list(sweep(alone[part], indices[:step], CPU)))
        with pytest.raises(ValueError, match="mini-batch 8 was asked for, and 9 is the next"):
            loader(8)
        ahead.close()
        assert not threads()


def test_a_thread_ends_with_a_sweep_where_nothing_is_trained():
    ahead, source = Ahead(still(), 0, False), Still("validation")
    for _ in range(2):
        same(
            list(sweep(source, [np.arange(3)] * 4, CPU, ahead, Stream(CPU))),
            list(sweep(source, [np.arange(3)] * 4, CPU)),
        )
        assert not threads()


class Counting:
    """Notes which samples were fetched, and by which thread; some wait until they may go on."""

    def __init__(self, held=()):
        self.log, self.held, self.go, self.reached = [], held, threading.Event(), threading.Event()

    def __getitem__(self, index):
        self.log.append((index, threading.current_thread().name))
        if index in self.held:
            self.reached.set()
            self.go.wait()
        if index == 2:
            sys.exit("a sample that ends the program")
        return index


def keys():
    return (Key(np.array([index]), None) for index in count())


def test_a_thread_is_two_mini_batches_ahead():
    dataset = Counting({AHEAD + 1})
    found = FetchingThread(FirstOf(dataset), keys(), False)
    assert next(found) == 0
    assert next(found) == 1
    # also one that would end the thread alone
    with pytest.raises(SystemExit, match="a sample that ends the program"):
        next(found)
    dataset.reached.wait()
    asked = [index for index, _ in dataset.log]
    assert asked == list(range(AHEAD + 2))
    assert {name for _, name in dataset.log} == {"fetches ahead"}
    dataset.go.set()
    found.close()
    # three were given out, and two more were asked for
    assert {index for index, _ in dataset.log} <= set(range(3 + AHEAD))
    assert not threads()


def test_a_threads_errors_are_raised_in_their_turn_where_it_is_asked():
    for stream in (None, Stream(CPU)):
        ahead = Ahead(FirstOf(Missing()), 0, False)
        loader = Loader(FirstOf(Missing()), InOrder(), CPU, ahead=ahead, stream=stream)
        assert loader(0) == [(1, 0)]
        with pytest.raises(FileNotFoundError, match=r"no such picture: '1.png'"):
            loader(1)
        with pytest.raises(ValueError, match="mini-batch 2 was asked for"):
            loader(2)
        ahead.close()
        assert not threads()


def test_a_thread_that_is_in_the_middle_of_a_fetch_keeps_nobody(monkeypatch):
    monkeypatch.setattr(threaded, "GRACE", 0.0)
    dataset = Counting({0})
    found = FetchingThread(FirstOf(dataset), keys(), False)
    dataset.reached.wait()
    found.close()
    dataset.go.set()
    found._thread.join()
    # what had not begun never does
    assert [index for index, _ in dataset.log] == [0]


@pytest.mark.cluster
def test_a_program_ends_whatever_its_thread_does():
    """By an exception, while the thread fetches what never comes."""
    command = [sys.executable, PROGRAMS / "loads.py", "threaded"]
    program = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=120)
    assert program.returncode == 1
    assert program.stderr.endswith("KeyError: 'raised'\n")


def test_a_gpu_has_a_thread_where_nothing_else_fetches_and_a_cpu_none():
    gpu = torch.device("cuda", 0)
    assert ahead_of(None, 0, CPU, thread=True) is None
    assert ahead_of(None, 0, gpu) is None
    for workers in (0, 2):
        ahead = ahead_of(None, workers, gpu, thread=True)
        assert (ahead._count, ahead._pinned) == (workers, True)
    assert ahead_of(None, 2, CPU)._pinned is False


def test_a_thread_pins_on_the_gpu_of_its_rank(monkeypatch):
    number = threading.local()
    number.gpu = 3
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number.gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(number, "gpu", gpu))
    monkeypatch.setattr(moving, "pin", lambda tensor: torch.full_like(tensor, number.gpu))
    found = FetchingThread(Part(Plain(), None), keys(), True)
    for _ in range(4):
        same(next(found), {"index": torch.tensor([3]), "double": torch.tensor([3.0], dtype=torch.float64)})
    found.close()


def test_tensors_are_pinned_wherever_they_are(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    x = torch.zeros(2)
    found = moving.pinned({"list": [x, "name"], "tuple": (x, None), "far": x.to("meta")})
    same((found["list"][0], found["tuple"][0]), (torch.ones(2), torch.ones(2)))
    assert (found["list"][1], found["tuple"][1], found["far"].device.type) == ("name", None, "meta")
