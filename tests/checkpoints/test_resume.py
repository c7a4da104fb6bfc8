"""A run that goes on is the run that was never stopped."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import replicas
from helpers.mpi import ENVIRONMENT, of_rank, pass_in_turn, passes
from helpers.trainer import TRAIN, equal, events, wrong

from parle_hpc import SAM, DiLoCo, ElasticSGD, EntropySGD, LocalSGD, Parle
from parle_hpc.algorithms.averaged import Averaged
from parle_hpc.algorithms.sgd import SGD
from parle_hpc.checkpoints import files
from parle_hpc.checkpoints.files import Stored, folder_of
from parle_hpc.checkpoints.resume import at_rest, parts, random_state, set_random_state
from parle_hpc.errors import SAVED

SHAPES = [(5, 4), (7,), (2, 3, 3, 2)]
OPTIMISERS = {
    **{
        f"parle {kind} {payload}": lambda p, comm, kind=kind, payload=payload: Parle(
            p, lr=0.1, L=3, batches_per_epoch=4, reference=kind, payload=payload, comm=comm
        )
        for kind in ("current", "lagged", "average")
        for payload in ("full", "bfloat16")
    },
    "parle eta2": lambda p, comm: Parle(p, lr=0.1, L=3, batches_per_epoch=4, eta2=0.1, mu2=0.5, comm=comm),
    "entropy_sgd": lambda p, comm: EntropySGD(p, lr=0.1, L=3, batches_per_epoch=4),
    "elastic_sgd": lambda p, comm: ElasticSGD(p, lr=0.05, batches_per_epoch=4, comm=comm),
    "diloco": lambda p, comm: DiLoCo(p, lr=0.05, L=3, comm=comm),
    "diloco overlap": lambda p, comm: DiLoCo(p, lr=0.05, L=3, overlap=True, comm=comm),
    "local_sgd": lambda p, comm: LocalSGD(p, lr=0.05, L=3, post_local_start=5, comm=comm),
    "sgd": lambda p, comm: SGD(p, lr=0.1),
    "sam": lambda p, comm: SAM(p, lr=0.1),
    "parle, ema": lambda p, comm: Averaged(OPTIMISERS["parle lagged full"](p, comm), "ema"),
    "parle, swa": lambda p, comm: Averaged(OPTIMISERS["parle current bfloat16"](p, comm), "swa", start=2),
    "elastic_sgd, swa": lambda p, comm: Averaged(in_threes(OPTIMISERS["elastic_sgd"](p, comm)), "swa"),
    "sam, ema": lambda p, comm: Averaged(in_threes(SAM(p, lr=0.1)), "ema"),
}


def in_threes(optimizer):
    """With rounds of three steps."""
    optimizer.round_length = 3
    return optimizer


def parameters():
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    # as a network in channels_last order has them
    made[2].data = made[2].data.contiguous(memory_format=torch.channels_last)
    return made


def give_gradients(params, a, k):
    for i, p in enumerate(params):
        noise = np.random.default_rng([a, k, i]).normal(size=p.shape).astype(np.float32)
        p.grad = p.detach() + torch.from_numpy(noise).to(p)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_saved_is_enough_to_go_on_bit_for_bit(name, n, tmp_path):
    """Through files, at the end of a round, into new parameters that hold something else."""

    def replica(a, comm, stop=None):
        params = parameters()
        optimizer = OPTIMISERS[name](params, comm)
        for k in range(24):
            if k == stop:
                with optimizer.at_reference():  # as a validation before
                    pass
                pieces, own = parts(optimizer, 0, 1)
                groups = [{key: v for key, v in g.items() if key != "params"} for g in optimizer.param_groups]
                files.write(tmp_path, a, pieces, own, {"groups": groups})
                stored = Stored(tmp_path, {"n": n, "m": 1})
                params = [torch.nn.Parameter(torch.zeros_like(p)) for p in params]
                optimizer = OPTIMISERS[name](params, comm)
                own = {key.removeprefix("optimizer/"): values for key, values in stored.own(a).items()} if own else {}
                optimizer.restore({**stored.replica(a), **own}, k, stored.facts(a)["groups"])
            give_gradients(params, a, k)
            optimizer.step()
        with optimizer.at_reference():
            reference = torch.cat([p.detach().flatten() for p in params])
        return torch.cat([p.detach().flatten() for p in params]), reference

    whole = replicas.run(n, replica)
    for stop in (3, 12):
        for one, other in zip(whole, replicas.run(n, lambda a, comm, stop=stop: replica(a, comm, stop)), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def of_a_new_replica(name, steps, folder):
    """(The reference after so many steps of three replicas, what a fourth begins with)."""

    def replica(a, comm):
        params = parameters()
        optimizer = OPTIMISERS[name](params, comm)
        for k in range(steps):
            give_gradients(params, a, k)
            optimizer.step()
        files.write(folder, a, *parts(optimizer, 0, 1), {})
        with optimizer.at_reference():
            return torch.cat([p.detach().as_strided((p.numel(),), (1,)) for p in params]).numpy()

    reference, *_ = replicas.run(3, replica)
    return reference, at_rest(Stored(folder, {"n": 3, "m": 1}))


def test_a_new_replica_starts_at_the_reference_and_at_rest(tmp_path):
    reference, new = of_a_new_replica("parle current full", 6, tmp_path)
    assert np.allclose(new["x"], reference, atol=1e-6)
    assert np.array_equal(new["z"], new["x"])
    assert not new["v_y"].any()
    assert not new["v_x"].any()


def test_its_average_is_that_of_the_replicas(tmp_path):
    reference, new = of_a_new_replica("parle, ema", 12, tmp_path)
    assert np.allclose(new["average"], reference, atol=1e-6)
    assert not np.allclose(new["x"], reference, atol=1e-3)


@pytest.mark.parametrize("name", ["diloco", "diloco overlap", "parle eta2"])
def test_what_all_replicas_have_in_common_it_has_to_the_bit(name, tmp_path):
    """The outer step must stay the same one everywhere."""
    reference, new = of_a_new_replica(name, 6, tmp_path)
    there = Stored(tmp_path, {"n": 3, "m": 1}).replica(1)
    common = {"diloco": ("x", "outer_v"), "parle eta2": ("x8d", "v8d")}.get(name, ())
    assert all(np.array_equal(new[key], there[key]) and there[key].any() for key in common)
    assert name == "parle eta2" or np.allclose(new["x"], reference, atol=1e-6)
    assert not new["v_y"].any()
    assert name != "diloco overlap" or not new["sent"].any()


def test_random_generators_go_on():
    state = copy.deepcopy(random_state())
    drawn = [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)]
    set_random_state(state)
    assert drawn == [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)]


SMALL = ("--data.samples", 400, "--data.batch_size", 16, "--algorithm.L", 6, "--schedule.max_rounds", 12)
SMALL += ("--run.checkpoint_every", 4, "--run.validate_every", 3)


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """A run of 2 x 2 ranks that nobody disturbed, with a checkpoint of rounds 4, 8 and 12: its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    passes(4, "saves.py", *SMALL, "--data.path", digits, "--out", folder, "--run.keep", 9, timeout=600)
    return folder


@pytest.fixture(scope="module")
def signalled(tmp_path_factory, digits):
    """The folder of a run that got SIGUSR1 and does not begin its fourth round before; its end as status and lines."""
    folder = tmp_path_factory.mktemp("signalled") / "run"
    given = ["faulty.py", 0, 3, "listens", *SMALL, "--data.path", digits, "--out", folder]
    command = ["mpirun", "-np", "4", "python", *of_rank(given)]
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True) as job:
        while job.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=600)
    return folder, job.returncode, [line for line in errors.splitlines() if "parle_hpc: " in line]


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory, digits, whole, signalled):
    """What goes on, or is the same again, in one start of 2 x 2 ranks: by name a run's folder and what it printed.

    `wrong` has what every rank is told of a run that cannot go on.
    """
    work = tmp_path_factory.mktemp("gone_on")
    folders = {name: work / name for name in ("damaged", "longer", "copied", "new", "again", "empty")}
    flip_a_bit(folder_of(copy_until(whole, 8, folders["damaged"]), 7) / "3.h5")
    shutil.copytree(whole, folders["longer"])
    copied = folder_of(copy_until(whole, 8, folders["copied"]), 7)
    folders["empty"].mkdir()
    folders |= {"signalled": signalled[0], "finished": signalled[0]}

    given = (*SMALL, "--data.path", digits)
    longer = [14 if value == 12 else value for value in given]
    commands = {
        "signalled": given,
        "finished": given,
        "damaged": given,
        "longer": longer,
        "new": (*given, "--resume", copied),
        "again": ("--recipe", whole / "config.toml", "--schedule.max_rounds", 14),
    }
    refused = wrong(
        2,
        (*given, "--out", whole, "--data.batch_size", 20),
        (*given, "--out", whole, "--model.dropout", 0.5),
        (*given, "--out", work / "other", "--resume", work / "none"),
        (*given, "--out", work / "other", "--resume", folders["empty"]),
    )
    trained = [(*TRAIN, *settings, "--out", folders[name]) for name, settings in commands.items()]
    *printed, told = pass_in_turn(4, *trained, refused, timeout=600)
    found = {name: (folders[name], text) for name, text in zip(commands, printed, strict=True)}
    return {**found, "wrong": json.loads(told)}


def copy_until(whole, round, folder):
    """A copy of a run as it was when the checkpoint after `round` was its newest."""
    shutil.copytree(whole, folder)
    (folder / "reference.pt").unlink()
    for newer in files.folders(folder):
        if newer.name > folder_of(folder, round - 1).name:
            shutil.rmtree(newer)
    return folder


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.cluster
def test_on_a_signal_it_saves_and_the_same_command_goes_on(whole, signalled, gone_on):
    folder, status, lines = signalled
    assert status == SAVED
    (line,) = lines
    assert "on SIGUSR1; the same command goes on" in line
    saved = int(line.split("saved after round ")[1].split("/")[0])
    assert saved <= 5
    assert f"goes on after round {saved}/12" in gone_on["signalled"][1]
    assert equal(whole, folder)
    assert [e["round"] for e in events(folder, "round")] == list(range(12))
    assert [e["val_error"] for e in events(folder, "validate")] == [e["val_error"] for e in events(whole, "validate")]
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    # a third time there is nothing to do
    assert "holds a run that is finished: 12 rounds; more --schedule.max_rounds go on" in gone_on["finished"][1]


@pytest.mark.cluster
def test_its_settings_make_the_same_run_again_bit_for_bit(whole, gone_on):
    """And two rounds more, as another goes on to. The last validation of the run, of which this is none, sees more."""
    again = gone_on["again"][0]
    validated = [[e["val_loss"] for e in events(folder, "validate")] for folder in (again, whole)]
    assert validated[0][:3] == validated[1][:3]
    assert equal(again, gone_on["longer"][0])


@pytest.mark.cluster
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(whole, gone_on):
    folder, printed = gone_on["damaged"]
    damaged = folder_of(folder, 7) / "3.h5"
    assert f"skipped a damaged checkpoint: {damaged} is not what was written" in printed
    assert "goes on after round 4/12" in printed
    assert equal(whole, folder)


@pytest.mark.cluster
def test_more_epochs_go_on_with_a_finished_run(gone_on):
    folder, printed = gone_on["longer"]
    assert "goes on after round 12/14" in printed
    assert equal(folder, gone_on["again"][0])
    assert len(events(folder, "end")) == 1


@pytest.mark.cluster
def test_another_run_can_be_gone_on_with_in_a_new_folder(whole, gone_on):
    folder, printed = gone_on["new"]
    assert "goes on after round 8/12" in printed
    assert equal(whole, folder)


@pytest.mark.cluster
@pytest.mark.parametrize(("case", "words"), [
    (0, ["--data.batch_size 20: the checkpoints in", "made with 16"]),
    (1, ["--model.dropout 0.5: the checkpoints in", "made with 0.25"]),
    (2, ["none: no such folder; give a run's folder, or auto or never"]),
    (3, ["empty: holds no complete checkpoint"]),
])  # fmt: skip
def test_all_ranks_are_told_the_same_of_a_run_that_cannot_go_on(gone_on, case, words):
    told = gone_on["wrong"][case]
    assert told == told[:1] * 4
    assert all(word in told[0] for word in words)


@pytest.mark.cluster
@pytest.mark.parametrize(("ranks", "replicas", "told"), [
    (2, 2, "goes on with 2 x 1 ranks after 2 x 2"),
    (1, 1, "goes on with 1 x 1 ranks after 2 x 2; only the first 1 replicas are kept"),
    (3, 3, "goes on with 3 x 1 ranks after 2 x 2; 1 more replicas start at the reference"),
])  # fmt: skip
def test_other_numbers_of_ranks_go_on_too(whole, digits, tmp_path, ranks, replicas, told):
    folder = copy_until(whole, 8, tmp_path / "run")
    options = ["--data.path", digits, "--out", folder, "--replicas", replicas]
    assert told in passes(ranks, *TRAIN, *SMALL, *options, timeout=600, OMP_NUM_THREADS="1")
    assert [e["round"] for e in events(folder, "round")] == list(range(12))
    start = events(whole, "validate")[-2]["val_error"]
    assert events(folder, "validate")[-1]["val_error"] <= start + 3


def test_a_signal_after_the_end_changes_nothing():
    """While Python comes down, without its handlers, SIGUSR1 would kill."""
    program = (
        "import torch\nfrom parle_hpc.cluster.signals import Preemption\np = Preemption()\np.over()\nprint(flush=True)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.0005)
    assert process.returncode == 0
