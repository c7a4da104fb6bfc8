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
from helpers.mpi import ENVIRONMENT, mpirun, our_lines, passes
from helpers.trainer import TRAIN, equal, events

from parle_hpc import ElasticSGD, EntropySGD, Parle
from parle_hpc.algorithms.sgd import SGD
from parle_hpc.checkpoints import files
from parle_hpc.checkpoints.files import Stored, folder_of, read_manifest
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
    "entropy_sgd": lambda p, comm: EntropySGD(p, lr=0.1, L=3, batches_per_epoch=4),
    "elastic_sgd": lambda p, comm: ElasticSGD(p, lr=0.05, batches_per_epoch=4, comm=comm),
    "sgd": lambda p, comm: SGD(p, lr=0.1),
}


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


def test_a_new_replica_starts_at_the_reference_and_at_rest(tmp_path):
    def replica(a, comm):
        params = parameters()
        optimizer = OPTIMISERS["parle current full"](params, comm)
        for k in range(6):
            give_gradients(params, a, k)
            optimizer.step()
        files.write(tmp_path, a, *parts(optimizer, 0, 1), {})
        with optimizer.at_reference():
            return torch.cat([p.detach().as_strided((p.numel(),), (1,)) for p in params]).numpy()

    reference, *_ = replicas.run(3, replica)
    new = at_rest(Stored(tmp_path, {"n": 3, "m": 1}))
    assert np.allclose(new["x"], reference, atol=1e-6)
    assert np.array_equal(new["z"], new["x"])
    assert not new["v_y"].any()
    assert not new["v_x"].any()


def test_random_generators_go_on():
    state = copy.deepcopy(random_state())
    drawn = [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)]
    set_random_state(state)
    assert drawn == [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)]


SMALL = ("--data.samples", 400, "--data.batch_size", 16, "--algorithm.L", 6, "--schedule.max_rounds", 12)
SMALL += ("--run.checkpoint_every", 4, "--run.validate_every", 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """A run of 2 x 2 ranks that nobody disturbed, with a checkpoint of rounds 4, 8 and 12: its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    passes(4, *TRAIN, *SMALL, "--data.path", digits, "--out", folder, "--run.keep", 9)
    return folder


def copy_until(whole, round, folder):
    """A copy of a run as it was when the checkpoint after `round` was its newest."""
    shutil.copytree(whole, folder)
    (folder / "reference.pt").unlink()
    for newer in files.folders(folder):
        if newer.name > folder_of(folder, round - 1).name:
            shutil.rmtree(newer)
    return folder


def test_on_a_signal_it_saves_and_the_same_command_goes_on(whole, digits, tmp_path):
    folder = tmp_path / "run"
    given = map(str, [*SMALL, "--data.path", digits, "--out", folder])
    command = ["mpirun", "-np", "4", "python", *TRAIN, *given]
    with subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        while job.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=120)
    assert job.returncode == SAVED, errors
    lines = [line.partition("parle_hpc: ")[2] for line in errors.splitlines() if "parle_hpc: " in line]
    assert len(lines) == 1
    assert "on SIGUSR1; the same command goes on" in lines[0]
    saved = int(lines[0].split("saved after round ")[1].split("/")[0])
    assert saved < 12
    # the checkpoint of every rank is there, however many rounds after the signal
    assert read_manifest(folder_of(folder, saved - 1))["round"] == saved - 1
    printed = passes(4, *TRAIN, *SMALL, "--data.path", digits, "--out", folder)
    assert f"goes on after round {saved}/12" in printed
    assert equal(whole, folder)
    assert [e["round"] for e in events(folder, "round")] == list(range(12))
    assert [e["val_error"] for e in events(folder, "validate")] == [e["val_error"] for e in events(whole, "validate")]
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    # a third time there is nothing to do
    assert "holds a run that is finished: 12 rounds" in passes(
        4, *TRAIN, *SMALL, "--data.path", digits, "--out", folder
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(whole, digits, tmp_path):
    folder = copy_until(whole, 8, tmp_path / "run")
    damaged = folder_of(folder, 7) / "3.h5"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    printed = passes(4, *TRAIN, *SMALL, "--data.path", digits, "--out", folder)
    assert f"skipped a damaged checkpoint: {damaged} is not what was written" in printed
    assert "goes on after round 4/12" in printed
    assert equal(whole, folder)


def test_more_epochs_go_on_with_a_finished_run_and_other_data_do_not(whole, digits, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    longer = [14 if v == 12 else v for v in SMALL]
    assert "goes on after round 12/14" in passes(4, *TRAIN, *longer, "--data.path", digits, "--out", folder)
    passes(4, *TRAIN, *longer, "--data.path", digits, "--out", tmp_path / "at once")
    assert equal(folder, tmp_path / "at once")
    assert len(events(folder, "end")) == 1
    for changed, now, before in (("--data.batch_size", "20", "16"), ("--model.dropout", "0.5", "0.25")):
        result = mpirun(4, *TRAIN, *SMALL, "--data.path", digits, "--out", folder, changed, now)
        assert result.returncode == 2
        (line,) = our_lines(result)
        assert f"{changed} {now}: the checkpoints in" in line
        assert f"made with {before}" in line


@pytest.mark.parametrize(("ranks", "replicas", "told"), [
    (2, 2, "goes on with 2 x 1 ranks after 2 x 2"),
    (1, 1, "goes on with 1 x 1 ranks after 2 x 2; only the first 1 replicas are kept"),
    (3, 3, "goes on with 3 x 1 ranks after 2 x 2; 1 more replicas start at the reference"),
])  # fmt: skip
def test_other_numbers_of_ranks_go_on_too(whole, digits, tmp_path, ranks, replicas, told):
    folder = copy_until(whole, 8, tmp_path / "run")
    options = ["--data.path", digits, "--out", folder, "--replicas", replicas]
    assert told in passes(ranks, *TRAIN, *SMALL, *options)
    assert [e["round"] for e in events(folder, "round")] == list(range(12))
    start = events(whole, "validate")[-2]["val_error"]
    assert events(folder, "validate")[-1]["val_error"] <= start + 3


def test_another_run_can_be_gone_on_with_in_a_new_folder(whole, digits, tmp_path):
    copied = folder_of(copy_until(whole, 8, tmp_path / "run"), 7)
    printed = passes(4, *TRAIN, *SMALL, "--data.path", digits, "--out", tmp_path / "new", "--resume", copied)
    assert "goes on after round 8/12" in printed
    assert equal(whole, tmp_path / "new")
    options = ["--data.path", digits, "--out", tmp_path / "other", "--resume", tmp_path / "none"]
    result = mpirun(1, *TRAIN, *SMALL, *options)
    assert result.returncode == 2
    assert "none: no such folder; give a run's folder, or auto or never" in our_lines(result)[0]
    (tmp_path / "none").mkdir()
    result = mpirun(1, *TRAIN, *SMALL, *options)
    assert result.returncode == 2
    assert "none: holds no complete checkpoint" in our_lines(result)[0]
    result = mpirun(1, *TRAIN, *SMALL, "--data.path", digits, "--out", tmp_path / "new", "--resume", "never")
    assert result.returncode == 2
    assert "holds a run already" in our_lines(result)[0]


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
