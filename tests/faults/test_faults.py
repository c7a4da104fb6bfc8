"""What breaks while a run is under way ends it, or does not, with one line, and leaves the last checkpoint."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.mpi import ENVIRONMENT, mpirun, our_lines
from helpers.replicas import Alone
from helpers.trainer import TRAIN

from parle_hpc.checkpoints.files import Piece, folders, read_manifest
from parle_hpc.checkpoints.saver import Saver
from parle_hpc.training.metrics import Metrics

pytestmark = pytest.mark.timeout(600)

# a thread of torch that waits for another one spins, and both are slow where other work has the cores
ALONE = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}

SMALL = ("--data.samples", 400, "--data.batch_size", 12, "--algorithm.L", 6, "--schedule.max_rounds", 12)
SMALL += ("--run.checkpoint_every", 2, "--run.validate_every", 6, "--run.check_every", 1)
# kind of fault: ranks, the round before which or after which it comes, counted from 0, and settings. Beside other work
# a mini-batch of milliseconds may take seconds: a patience that no rank can lose that is well
FAULTS = {
    "sleeps": (2, 7, "--replicas", 2, "--run.patience", 15),
    "stops": (2, 7, "--replicas", 2, "--run.patience", 15),
    "drifts": (3, 5, "--replicas", 1),
    "nan": (2, 5, "--replicas", 2),
}


def whole(out):
    """Rounds, from 1, of the complete checkpoints of a run."""
    return [read_manifest(folder)["round"] + 1 for folder in folders(out) if (folder / "manifest.json").exists()]


@pytest.fixture(scope="module")
def broken(digits, tmp_path_factory):
    """By the fault, of rank 1: a run's status, lines and complete checkpoints. Side by side, as two of them wait."""

    def run(kind):
        (ranks, at, *settings), folder = FAULTS[kind], tmp_path_factory.mktemp(kind)
        given = (*SMALL, "--data.path", digits, "--out", folder, *settings)
        result = mpirun(ranks, "faulty.py", 1, at, kind, *given, timeout=500)
        return result.returncode, our_lines(result), whole(folder)

    with ThreadPoolExecutor() as pool:
        return dict(zip(FAULTS, pool.map(run, FAULTS), strict=True))


@pytest.mark.cluster
def test_a_rank_that_is_stuck_says_so_itself(broken):
    status, (line,), complete = broken["sleeps"]
    assert status == 1
    assert line.startswith("rank 1 on ")
    assert "is stuck in round 8: no progress for 15 s; the job ends and the last complete checkpoint stays" in line
    assert complete == [2]


@pytest.mark.cluster
def test_a_rank_that_is_stopped_does_not_hold_the_others_for_ever(broken):
    status, (line,), complete = broken["stops"]
    assert status == 1
    assert line.startswith("rank 0 on ")
    assert " waits for " in line
    assert " in round " in line
    assert complete == [2]


@pytest.mark.cluster
def test_ranks_that_drift_apart_are_found_and_named(broken):
    status, (line,), complete = broken["drifts"]
    assert status == 1
    assert line.startswith("round 6: the ranks of replica 0 do not hold the same weights any more, rank 1 on ")
    assert "the one of round 2 stays" in line
    assert complete == [2]


@pytest.mark.cluster
def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(broken):
    """The loss shows it a round later; a checkpoint in between must not be taken."""
    status, (line,), complete = broken["nan"]
    assert status == 3
    assert "rank 1 on " in line
    assert "replica 1" in line
    assert complete == [2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
    saver = Saver(tmp_path, Alone(), 60, keep=9)
    for round, last in enumerate([1, value]):
        values = np.array([0, last], np.float32)
        saver.start(round, ({"x": Piece(values, 0, 2)}, {}, {}), {"score": None})
        problem = saver.settle()
        assert problem is None if last == 1 else "x is not finite" in problem
    assert whole(tmp_path) == [1]


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk, tmpfs, needs root")
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(digits, tmp_path):
    """An output folder of 4 MB; a checkpoint of one replica takes 2.1 MB, and a second one does not fit."""
    options = [*SMALL, "--data.path", digits, "--out", tmp_path / "disk", "--run.validate_every", 100]
    train = " ".join(map(str, [sys.executable, *TRAIN, *options]))
    script = (
        f"mkdir {tmp_path}/disk; mount -t tmpfs -o size=4m tmpfs {tmp_path}/disk; {train}; echo status $?; "
        f"ls {tmp_path}/disk/checkpoints/*; echo complete {tmp_path}/disk/checkpoints/*/manifest.json"
    )
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=ALONE,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ": rank 0 on " in result.stdout, result.stdout + result.stderr
    assert "no space left (No space left on device): free some, or lower --run.keep; the run goes on" in result.stdout
    assert "validation error of the reference" in result.stdout
    assert "status 0" in result.stdout
    assert ".partial" not in result.stdout
    assert result.stdout.endswith(f"complete {tmp_path}/disk/checkpoints/round-000002/manifest.json\n")
    assert "Traceback" not in result.stderr


def test_metrics_survive_a_file_system_that_goes_away(tmp_path, capsys):
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    metrics = Metrics(here)
    metrics.event("round", 0, 5)
    here.rename(away)
    for round in (1, 2):
        metrics.event("round", round, 5)
    away.rename(here)
    metrics.event("round", 3, 5)
    lines = (here / "metrics.jsonl").read_text().splitlines()
    assert [line.split('"round": ')[1][0] for line in lines] == ["0", "1", "2", "3"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def start_alone(digits, out, *options):
    """A process in its first round, which takes an hour, and which listens to signals."""
    command = [sys.executable, *TRAIN, *SMALL, "--data.path", digits, "--out", out, "--algorithm.L", 100_000, *options]
    job = subprocess.Popen(
        list(map(str, command)),
        env=ALONE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while job.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    return job


def waiting_signals(job):
    """Numbers of the signals that a process has been sent and has not taken yet: the same one twice is one."""
    status = Path(f"/proc/{job.pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return {number for number in range(1, 65) for mask in masks if mask >> (number - 1) & 1}


@pytest.mark.cluster
def test_a_second_signal_ends_it_at_once(digits, tmp_path):
    job = start_alone(digits, tmp_path / "run")
    job.send_signal(signal.SIGTERM)
    while signal.SIGTERM in waiting_signals(job):
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=500)
    assert job.returncode == 128 + signal.SIGTERM
    (line,) = errors.splitlines()
    assert "ends at once after SIGTERM: a second one, SIGTERM, came; the last complete checkpoint stays" in line


@pytest.mark.cluster
def test_so_does_a_round_that_takes_too_long_after_a_signal(digits, tmp_path):
    job = start_alone(digits, tmp_path / "run", "--run.grace", 2)
    job.send_signal(signal.SIGUSR2)
    _, errors = job.communicate(timeout=500)
    assert job.returncode == 128 + signal.SIGUSR2
    (line,) = errors.splitlines()
    assert "did not end its round within 2 s" in line
