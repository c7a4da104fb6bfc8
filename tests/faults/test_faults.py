"""What breaks while a run is under way ends it, or does not, with one line, and leaves the last checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.mpi import ENVIRONMENT, mpirun, our_lines
from helpers.trainer import TRAIN

from parle_hpc.checkpoints.files import folders, read_manifest
from parle_hpc.training.metrics import Metrics

SMALL = ("--data.samples", 400, "--data.batch_size", 12, "--algorithm.L", 6, "--schedule.max_rounds", 12)
SMALL += ("--run.checkpoint_every", 2, "--run.validate_every", 6, "--run.check_every", 1)
LONG = (*SMALL[:6], *SMALL[8:], "--schedule.epochs", 9999)


def whole(out):
    """Rounds, from 1, of the complete checkpoints of a run."""
    return [read_manifest(folder)["round"] + 1 for folder in folders(out) if (folder / "manifest.json").exists()]


@pytest.mark.timeout(120)
def test_a_rank_that_is_stuck_says_so_itself(digits, tmp_path):
    options = ("--data.path", digits, "--out", tmp_path, "--run.patience", 5, "--replicas", 2)
    result = mpirun(2, "faulty.py", 1, 7, "sleeps", *SMALL, *options, timeout=100)
    assert result.returncode == 1
    (line,) = our_lines(result)
    assert line.startswith("rank 1 on ")
    assert "is stuck in round 8: no progress for 5 s; the job ends and the last complete checkpoint stays" in line
    assert whole(tmp_path)[-1] >= 2


@pytest.mark.timeout(120)
def test_a_rank_that_is_stopped_does_not_hold_the_others_for_ever(digits, tmp_path):
    options = [*LONG, "--data.path", digits, "--out", tmp_path / "run", "--run.patience", 5, "--replicas", 2]
    command = ["mpirun", "-np", "2", sys.executable, *TRAIN, *options]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as job:
        while job.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
            time.sleep(0.01)
        ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(ranks[1]), signal.SIGSTOP)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    (line,) = [line for line in errors.splitlines() if "parle_hpc: " in line]
    assert "rank 0 on " in line
    assert "waits for another rank, which is dead or stuck, in round " in line


def test_ranks_that_drift_apart_are_found_and_named(digits, tmp_path):
    options = ("--data.path", digits, "--out", tmp_path, "--replicas", 1)
    result = mpirun(3, "faulty.py", 1, 5, "drifts", *SMALL, *options)
    assert result.returncode == 1
    (line,) = our_lines(result)
    assert line.startswith("round 6: the ranks of replica 0 do not hold the same weights any more, rank 1 on ")
    assert "the one of round" in line


def test_weights_that_are_not_finite_are_never_saved(digits, tmp_path):
    """The loss shows it a round later; a checkpoint in between must not be taken."""
    options = ("--data.path", digits, "--out", tmp_path, "--replicas", 2)
    result = mpirun(2, "faulty.py", 1, 5, "nan", *SMALL, *options)
    assert result.returncode == 3
    (line,) = our_lines(result)
    assert "rank 1 on " in line
    assert "replica 1" in line
    assert whole(tmp_path)
    assert max(whole(tmp_path)) <= 5


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk, tmpfs, needs root")
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(digits, tmp_path):
    """An output folder of 4 MB; a checkpoint of one replica takes 2.1 MB, and a second one does not fit."""
    options = [*SMALL, "--data.path", digits, "--out", tmp_path / "disk", "--run.validate_every", 100]
    train = " ".join(map(str, [sys.executable, *TRAIN, *options]))
    find = f"{sys.executable} -c \"from test_faults import whole; print('whole', whole('{tmp_path}/disk'))\""
    script = (
        f"mkdir {tmp_path}/disk; mount -t tmpfs -o size=4m tmpfs {tmp_path}/disk; {train}; echo status $?; "
        f"ls {tmp_path}/disk/checkpoints/*; {find}"
    )
    path = os.pathsep.join([str(Path(__file__).parent), ENVIRONMENT["PYTHONPATH"]])
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ": rank 0 on " in result.stdout, result.stdout + result.stderr
    assert "no space left (No space left on device): free some, or lower --run.keep; the run goes on" in result.stdout
    assert "validation error of the reference" in result.stdout
    assert "status 0" in result.stdout
    assert ".partial" not in result.stdout
    assert "whole [2]" in result.stdout
    assert "Traceback" not in result.stderr


def test_metrics_survive_a_file_system_that_goes_away(tmp_path, capsys):
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    metrics = Metrics(here, 10, 5)
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
    command = [sys.executable, *TRAIN, *SMALL, "--data.path", digits, "--out", out, "--schedule.epochs", 9999, *options]
    job = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while job.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    return job


def test_a_second_signal_ends_it_at_once(digits, tmp_path):
    job = start_alone(digits, tmp_path / "run", "--algorithm.L", 100000)
    job.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 128 + signal.SIGTERM
    (line,) = errors.splitlines()
    assert "ends at once after SIGTERM: a second one, SIGTERM, came; the last complete checkpoint stays" in line


def test_so_does_a_round_that_takes_too_long_after_a_signal(digits, tmp_path):
    job = start_alone(digits, tmp_path / "run", "--algorithm.L", 100000, "--run.grace", 2)
    job.send_signal(signal.SIGUSR2)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGUSR2
    (line,) = errors.splitlines()
    assert "did not end its round within 2 s" in line
