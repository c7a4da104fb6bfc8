"""A rank's mini-batches of any task: the same with and without workers, which outlive signals and not their rank."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import pytest
import torch
from helpers.loading import Drawing, Failing, FirstOf, InOrder, Logging, Noisy, Part, Source, Unmakeable
from helpers.mpi import ENVIRONMENT, PROGRAMS, passes
from torch.nn.utils.rnn import pack_sequence

from parle_hpc.cluster.signals import SIGNALS
from parle_hpc.data.ahead import Ahead
from parle_hpc.data.fetch import Key
from parle_hpc.data.loader import Loader, sweep
from parle_hpc.data.moving import to_device
from parle_hpc.data.split import MiniBatches
from parle_hpc.data.workers import ASKING, Workers

CPU = torch.device("cpu")


def batches(**of):
    return MiniBatches(np.arange(40), 12, **{"seed": 3, "replica": 1, **of})


def same(a, b):
    """Two lists of (samples, batch) are the same, bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def generators():
    _, words, *rest = np.random.get_state()
    return random.getstate(), words.tolist(), rest, torch.get_rng_state().tolist()


def joined(parts, name):
    return torch.cat([batch[name] for _, batch in parts])


def until(condition):
    """Wait for what must come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_gives_what_the_mini_batch_holds_in_parts_as_torch_chunk_makes_them():
    for m, accumulate in ((1, 1), (1, 3), (3, 3), (1, 5), (3, 9)):
        mine = batches(place=m - 1, m=m)
        for step in (5, 0, 3):
            parts = Loader(Source(Drawing()), mine, CPU, accumulate=accumulate)(step)
            chunks = torch.from_numpy(mine.indices(step)).chunk(accumulate)
            assert [samples for samples, _ in parts] == [len(chunk) for chunk in chunks]
            assert all(torch.equal(batch["index"], chunk) for (_, batch), chunk in zip(parts, chunks, strict=True))


def test_what_is_drawn_depends_neither_on_m_nor_on_the_parts():
    (_, whole), *_ = Loader(Noisy(Drawing()), batches(), CPU)(2)
    first, second = whole["noise"]
    assert torch.equal(first, torch.from_numpy(np.random.default_rng([3, 1, 2, 2]).normal(size=(12, 2))))
    assert not torch.equal(first, second)
    for m, accumulate in ((1, 4), (3, 1), (3, 2)):
        ranks = [batches(place=place, m=m) for place in range(m)]
        parts = [part for mine in ranks for part in Loader(Noisy(Drawing()), mine, CPU, accumulate=accumulate)(2)]
        assert torch.equal(joined(parts, "index"), whole["index"])
        for number in range(2):
            assert torch.equal(torch.cat([batch["noise"][number] for _, batch in parts]), whole["noise"][number])


def test_what_samples_draw_is_a_function_of_seed_replica_step_place_and_part():
    found = Loader(Source(Drawing()), batches(), CPU, accumulate=2)(4)
    before = generators()
    same(found, Loader(Source(Drawing()), batches(), CPU, accumulate=2)(4))
    assert generators() == before
    others = [(batches(seed=4), 4), (batches(replica=0), 4), (batches(place=1, m=2), 4), (batches(), 5)]
    drawn = [joined(Loader(Source(Drawing()), mine, CPU, accumulate=2)(step), "drawn") for mine, step in others]
    drawn.append(joined(found, "drawn"))
    values = torch.cat(drawn).flatten().tolist()
    assert len(set(values)) == len(values)


def test_the_generators_go_on_as_before_also_after_an_exception_and_are_left_alone_where_nothing_is_drawn():
    before = generators()
    with pytest.raises(FileNotFoundError):
        Loader(Source(Failing()), InOrder(), CPU)(1)
    assert generators() == before
    source = Source(Drawing())
    source.draws = False
    torch.manual_seed(0)
    (_, batch), *_ = Loader(source, InOrder(), CPU)(0)
    torch.manual_seed(0)
    assert batch["drawn"][0, 2] == torch.rand(())


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """What two workers did from step 7 on, and how."""
    log = tmp_path_factory.mktemp("loader") / "log"
    ahead = Ahead(Noisy(Logging(log)), 2, False)
    loader = Loader(Noisy(Logging(log)), batches(), CPU, accumulate=2, ahead=ahead, first=7)
    before, handler = generators(), signal.getsignal(signal.SIGCHLD)
    found = {7: loader(7)}
    # two batches a worker are fetched while nobody asks; each is a part
    until(lambda: len(log.read_text().splitlines()) == 2 + 4)
    found |= {step: loader(step) for step in (8, 9, 10)}
    with pytest.raises(ValueError, match="mini-batch 10 was asked for, and 11 is the next that the workers have"):
        loader(10)
    after, pids = generators(), ahead._workers.pids
    ahead.close()
    assert signal.getsignal(signal.SIGCHLD) == handler
    return found, log.read_text().splitlines(), before == after, pids


def test_workers_give_what_none_give_and_leave_the_generators_alone(worked, tmp_path):
    found, _, untouched, _ = worked
    alone = Loader(Noisy(Logging(tmp_path / "log")), batches(), CPU, accumulate=2)
    for step, parts in found.items():
        same(parts, alone(step))
    assert untouched


def test_workers_are_processes_of_one_thread_that_know_nothing_of_mpi_and_end(worked):
    _, log, _, pids = worked
    assert {int(line.split()[0]) for line in log} == set(pids)
    assert os.getpid() not in pids
    assert {tuple(line.split()[1:3]) for line in log} == {("1", "[]")}
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_sweep_between_two_mini_batches_changes_neither(tmp_path):
    """Of two parts, by the processes that have fetched mini-batches of training ahead."""
    train, other = Part(Drawing(), "train"), Part(Drawing(), "validation")
    ahead = Ahead({"train": train, "validation": other}, 2, False)
    loader, alone = (Loader(train, batches(), CPU, ahead=a) for a in (ahead, None))
    indices = [np.arange(k, k + 3) for k in range(0, 24, 3)]
    for step in range(4):
        same(loader(step), alone(step))
        for source in (other, train):
            same(list(sweep(source, indices[:step], CPU, ahead)), list(sweep(source, indices[:step], CPU)))
    ahead.close()
    again = Ahead({"validation": other}, 1, False)  # nothing is trained
    for _ in range(2):
        same(list(sweep(other, indices, CPU, again)), list(sweep(other, indices, CPU)))
    assert again._workers is None


def test_what_goes_wrong_in_a_worker_comes_out_as_what_it_is():
    # a worker is two samples ahead, so that by which it is killed is asked for once the others' ends have come
    asked = chain([0, 1, 2, 3, 0, 0], count(4))
    some = Workers(FirstOf(Failing()), (Key(np.array([index]), None) for index in asked), 1, False)
    assert next(some) == 0
    with pytest.raises(FileNotFoundError, match=r"no such picture: 'cat.png'") as found:
        next(some)
    assert 'raise FileNotFoundError(2, "no such picture", "cat.png")' in str(found.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^Odd: 2: an odd picture$") as found:
        next(some)
    assert "raise Odd(2" in str(found.value.__cause__)
    with pytest.raises(TypeError, match="cannot pickle"):
        next(some)
    killed = f"^a worker that loads data, process {some.pids[0]}, was killed, as is done where memory is full"
    with pytest.raises(RuntimeError, match=killed):
        [next(some) for _ in range(3)]
    some.close()


def test_a_source_that_a_worker_cannot_make_again_says_why_and_a_death_ends_a_wait():
    ahead = Ahead(Unmakeable(Drawing()), 1, False)
    loader = Loader(Unmakeable(Drawing()), InOrder(), CPU, ahead=ahead)
    with pytest.raises(ImportError, match="no module of that name on this node"):
        loader(0)
    with pytest.raises(ValueError, match="mini-batch 1 was asked for"):
        loader(1)
    some = ahead._workers

    class HalfAMessage:
        def __next__(self):
            threading.Timer(0.1, os.kill, (some.pids[0], signal.SIGALRM)).start()  # nohup's children know no SIGHUP
            threading.Event().wait(30)

    iterator, some._iterator = some._iterator, HalfAMessage()
    with pytest.raises(RuntimeError, match="was ended by SIGALRM"):
        next(some)
    some._iterator = iterator
    ahead.close()


def test_the_training_command_starts_nothing_in_a_worker_which_imports_it():
    command = "import runpy, sys; runpy.run_module('parle_hpc.train', run_name='__mp_main__', alter_sys=True); "
    command += "sys.exit(bool({'torch', 'mpi4py', 'horovod'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", command], env=ENVIRONMENT).returncode == 0


@pytest.mark.cluster
def test_workers_of_ranks_know_nothing_of_mpi(tmp_path):
    # two ranks, whose lines mpirun may join
    assert passes(2, "loads.py", "as_a_rank", tmp_path).replace("\n", "") == "the same" * 2


def of_session(leader):
    """Processes of a session, but for those that have ended."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(pid))
    return found


@pytest.fixture
def start():
    """Starts the program loads.py, in a session of its own."""
    programs = []

    def start(*arguments):
        command = [sys.executable, PROGRAMS / "loads.py", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        programs.append(subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **streams))
        return programs[0]

    yield start
    for pid in of_session(programs[0].pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.cluster
def test_signals_that_ask_a_rank_for_an_end_do_not_reach_its_workers(start):
    assert set(ASKING) == set(SIGNALS)
    program = start("under_signals")
    _, errors = program.communicate(timeout=120)
    assert (program.returncode, errors) == (0, "")
    until(lambda: not of_session(program.pid))


@pytest.mark.cluster
@pytest.mark.parametrize(("way", "status"), [("waits", -9), ("exits", 3), ("closes", 4), ("raises", 1), ("starts", 5)])
def test_no_worker_stays_however_its_rank_ends(start, tmp_path, way, status):
    """One worker is in the middle of a message that nobody reads, the other never comes back from its data set."""
    program = start(way, tmp_path / "stuck")
    assert program.stdout.readline() == "stuck\n"
    if way == "waits":
        assert len(of_session(program.pid)) == 4  # and multiprocessing's tracker of resources
        program.kill()
    # its streams close once nobody holds them any more
    _, errors = program.communicate(timeout=60)
    assert program.returncode == status
    until(lambda: not of_session(program.pid))
    if way == "closes":
        assert errors == ""


Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Sample:
    image: torch.Tensor
    name: str


def test_tensors_move_wherever_they_are_and_nothing_else_changes():
    meta, array, x = torch.device("meta"), np.zeros(3), torch.zeros(2)
    moved = to_device(
        {
            "list": [x, "name", array],
            "tuple": (x, None),
            "pair": Pair(x, 1),
            "sample": Sample(x, "cat"),
            "ordered": OrderedDict(x=x),
            "default": defaultdict(int, x=x),
            "packed": pack_sequence([x]),
        },
        meta,
    )
    tensors = [moved["list"][0], moved["tuple"][0], moved["pair"].a, moved["sample"].image, moved["packed"].data]
    tensors += [moved["ordered"]["x"], moved["default"]["x"]]
    assert {tensor.device for tensor in tensors} == {meta}
    assert moved["list"][1:] == ["name", array]
    assert (moved["tuple"][1], moved["pair"].b, moved["sample"].name) == (None, 1, "cat")
    assert [type(moved[key]) for key in ("pair", "sample", "ordered")] == [Pair, Sample, OrderedDict]
    assert moved["default"]["missing"] == 0
    assert x.device == CPU
