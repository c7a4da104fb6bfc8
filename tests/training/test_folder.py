"""What a run leaves, and where: one folder a run, and what it says holds on another day, in another folder."""

import os
import shutil
import signal
import subprocess
import time

import h5py
import pytest
from helpers.mpi import COLD, ENVIRONMENT, module, our_lines, warm
from helpers.trainer import TRAIN, events, weights

from parle_hpc.data.prepare import prepare
from parle_hpc.data.store import open_dataset
from parle_hpc.errors import BadInput
from parle_hpc.paper.study import study, study_of_replicas
from parle_hpc.settings import load
from parle_hpc.training.finished import open_run

pytestmark = pytest.mark.cluster
SHORT = ["--schedule.max_rounds", "2", "--algorithm.L", "2", "--run.statistics_batches", "1"]
# a file system that forces no folder to disk, as in a desktop's mounts
UNABLE = """
import errno, os, stat
real = os.fsync
def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    real(descriptor)
os.fsync = fsync
"""


def started(*settings, cwd, python=None, **environment):
    command = [*(python or warm()), *TRAIN, *SHORT, *map(str, settings)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env={**ENVIRONMENT, **environment}, **streams)


def ended(process):
    output, errors = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="module")
def four(tmp_path_factory, digits):
    """A folder in which four runs without --out were started at once, each with its seed; their results."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "data").mkdir()
    shutil.copy(digits, folder / "data")
    all_of_them = [started("--run.seed", seed, cwd=folder) for seed in range(4)]
    return folder, [ended(process) for process in all_of_them]


def test_runs_that_start_at_once_have_a_folder_each(four):
    folder, results = four
    assert [result.returncode for result in results] == [0] * 4, results
    runs = list((folder / "runs").iterdir())
    assert sorted(load(["--recipe", str(run / "config.toml")]).run.seed for run in runs) == [0, 1, 2, 3]
    for seed, result in enumerate(results):
        (told,) = [line for line in result.stdout.splitlines() if line.startswith("writes into ")]
        run = folder / told.split()[2].rstrip(",")
        assert told.endswith(f"with seed {seed}")
        assert load(["--recipe", str(run / "config.toml")]).run.seed == seed
    for run in runs:
        assert [len(events(run, name)) for name in ("start", "round", "end")] == [1, 2, 1]
        assert not (run / "running.json").exists()


def test_a_folder_that_a_living_run_holds_is_refused_and_a_dead_ones_is_not(tmp_path, digits):
    """Of two at once with one --out one trains; killed, it is gone on with."""
    settings = ["--data.path", digits, "--out", tmp_path / "run", "--schedule.max_rounds", 100_000]
    settings += ["--schedule.epochs", 100_000]
    # whose number is told, and which is dead when it is killed
    first = started(*settings, "--run.checkpoint_every", 1, cwd=tmp_path, python=COLD)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/*/manifest.json")) and time.monotonic() < until:
            time.sleep(0.1)
        second = ended(started(*settings, "--run.seed", 1, cwd=tmp_path))
        (line,) = our_lines(second)
        assert second.returncode == 2
        assert f"--out {tmp_path / 'run'}: process {first.pid} on {os.uname().nodename}, since 20" in line
        assert load(["--recipe", str(tmp_path / "run" / "config.toml")]).run.seed == 0
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    rounds = len(events(tmp_path / "run", "round"))
    third = ended(started(*settings, "--schedule.max_rounds", rounds + 1, cwd=tmp_path))
    assert third.returncode == 0, third.stderr
    assert "goes on after round" in third.stdout


def test_what_a_run_leaves_is_used_from_elsewhere(four, tmp_path, digits):
    run = next((four[0] / "runs").iterdir())
    written = load(["--recipe", str(run / "config.toml")]).data
    assert written.path == str(four[0] / "data" / "digits.h5")
    assert written.checksum == open_dataset(digits, "digits").checksum
    told = module("parle_hpc.evaluate", run, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    text = (run / "config.toml").read_text()
    (moved / "config.toml").write_text(text.replace(written.path, "/nowhere/digits.h5"))
    lost = f"/nowhere/digits.h5, the data set digits of {moved}, is not there; give its file by --data.path FILE"
    assert refused(open_run, moved) == refused(study, [moved, run]) == refused(study_of_replicas, moved) == lost
    assert module("parle_hpc.evaluate", moved, "--data.path", digits, cwd=tmp_path).stdout == told.stdout
    other = shutil.copy(digits, tmp_path / "other.h5")
    with h5py.File(other, "a") as file:
        file["train/labels"][0] = 9 - file["train/labels"][0]
    line = refused(open_run, moved, other)
    assert refused(study, [moved, run], other) == refused(study_of_replicas, moved, other) == line
    assert f"{other} holds another data set (checksum " in line
    assert f"than it should ({written.checksum})" in line


def refused(function, *arguments):
    with pytest.raises(BadInput) as told:
        function(*arguments)
    return str(told.value)


def test_a_run_goes_on_with_its_data_alone(four, tmp_path, digits):
    """Wherever the file lies now; but not with another of as many images."""
    run = tmp_path / "run"
    shutil.copytree(next((four[0] / "runs").iterdir()), run)
    seed = load(["--recipe", str(run / "config.toml")]).run.seed
    more = ["--out", run, "--schedule.max_rounds", 3, "--run.seed", seed, "--data.path"]
    other = shutil.copy(digits, tmp_path / "other.h5")
    with h5py.File(other, "a") as file:
        file["test/labels"][0] = 9 - file["test/labels"][0]
    refused = ended(started(*more, other, cwd=tmp_path))
    (line,) = our_lines(refused)
    assert refused.returncode == 2
    assert f"--data.path {other}: holds " in line
    assert "give the same data" in line
    went_on = ended(started("--recipe", run / "config.toml", *more, digits, cwd=tmp_path))
    assert "goes on after round 2/3" in went_on.stdout, went_on.stderr


def test_a_copy_on_the_node_is_read_and_not_remembered(tmp_path, digits):
    copy = shutil.copy(digits, tmp_path / "copy.h5")
    settings = ["--data.path", "/only/elsewhere.h5", "--out", tmp_path / "run"]
    result = ended(started(*settings, "--data.node_copy", copy, cwd=tmp_path))
    assert result.returncode == 0, result.stderr
    assert "copy" not in (tmp_path / "run" / "config.toml").read_text()
    assert load(["--recipe", str(tmp_path / "run" / "config.toml")]).data.path == "/only/elsewhere.h5"
    with h5py.File(copy, "a") as file:
        del file.attrs["classes"]
    damaged = ended(started(*settings, "--data.node_copy", copy, "--schedule.max_rounds", 3, cwd=tmp_path))
    (line,) = our_lines(damaged)
    assert line.startswith("/only/elsewhere.h5: attribute 'classes' is missing")
    missing = ended(started(*settings, "--data.node_copy", "/no.h5", "--schedule.max_rounds", 3, cwd=tmp_path))
    (line,) = our_lines(missing)
    assert missing.returncode == 2
    assert line.startswith(f"--data.node_copy /no.h5: no such file on {os.uname().nodename}")


def test_a_run_that_nobody_listens_to_any_more_goes_on(tmp_path, digits):
    """As after `| head -1`; and one whose only checkpoint is not complete says that it starts anew."""
    settings = ["--data.path", digits, "--out", tmp_path / "run"]
    process = started(*settings, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(200) == 0
    assert "written" in (tmp_path / "run" / "train.log").read_text()
    for path in tmp_path.glob("run/checkpoints/*/manifest.json"):
        path.unlink()
    again = ended(started(*settings, cwd=tmp_path))
    assert f"{tmp_path / 'run'}: no complete checkpoint of the run that was here, which starts anew" in again.stdout


def test_where_the_current_folder_cannot_be_written_the_digits_go_to_the_run(tmp_path):
    (tmp_path / "data").touch()
    result = ended(started("--out", tmp_path / "run", cwd=tmp_path))
    assert result.returncode == 0, result.stderr
    assert load(["--recipe", str(tmp_path / "run" / "config.toml")]).data.path == str(tmp_path / "run" / "digits.h5")


def test_a_file_system_that_forces_no_folder_to_disk(tmp_path, digits):
    (tmp_path / "sitecustomize.py").write_text(UNABLE)
    path = f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"
    result = ended(started("--data.path", digits, "--out", "run", cwd=tmp_path, python=COLD, PYTHONPATH=path))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert list(tmp_path.glob("run/checkpoints/*/manifest.json"))
    assert weights(tmp_path / "run")


def test_a_checksum_stands_for_labels_and_shapes(tmp_path, digits):
    again = prepare("digits", out=tmp_path / "again.h5")
    whole = open_dataset(digits, "digits")
    assert open_dataset(again, "digits").checksum == whole.checksum
    assert open_dataset(digits, "digits", samples=100).checksum == whole.checksum
