"""The batch scripts of slurm/, as they are, on a real Slurm, with sizes turned down."""

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tomlkit
import torch
from helpers import raw
from helpers.mpi import PROGRAMS
from helpers.slurm_cluster import SlurmCluster, needs_slurm
from helpers.task_files import write

from parle_hpc.coupling.mailbox import heartbeat

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "slurm").glob("*.sbatch"))
SETTINGS = {
    "PARLE_HPC_ROOT": str(ROOT),
    "PARLE_HPC_VENV": sys.prefix,
    # each host's own
    "PARLE_HPC_LOCAL": "/dev/shm",
    "SBATCH_GPUS_PER_NODE": "0",
}
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
TWO_HOSTS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
ONE_TASK = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), needs_slurm]


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(3) as cluster:
        yield cluster


def submit(cluster, folder, recipe, *settings, options=TWO_HOSTS, **environment):
    """The number of a queued job that runs in `folder`."""
    script = ROOT / "slurm" / f"{recipe}.sbatch"
    return cluster.sbatch(*options, script, *settings, cwd=folder, **{**SETTINGS, **environment})


# `python -m parle_hpc.train SETTINGS...`, and at a job's first start the same with a fault in rank 0's fifth round. Its
# first two steps are the trainer's and, where there is one, the guard's; in its script it is in none
AT_FAULT = """#!/bin/sh
[ "$SLURM_RESTART_COUNT" ] || [ "${{SLURM_STEP_ID:-2}}" -gt 1 ] || {{ shift 2; set -- {program} 0 4 {kind} "$@"; }}
exec {python} "$@"
"""


def at_fault(folder, kind):
    """Settings of a job that, until something comes from outside, neither ends nor goes on; kinds: see faulty.py."""
    python = folder / "at_fault" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(AT_FAULT.format(program=PROGRAMS / "faulty.py", kind=kind, python=sys.executable))
    python.chmod(0o755)
    return {"PARLE_HPC_VENV": str(folder / "at_fault")}


def output(folder):
    """What the jobs of a folder printed."""
    return "".join(path.read_text() for path in sorted(folder.glob("*.out")))


def our_lines(folder):
    return [line.partition("parle_hpc: ")[2] for line in output(folder).splitlines() if "parle_hpc: " in line]


def completed(cluster, folder, job):
    """What Slurm knows of a job that must end well."""
    ended = cluster.wait(job)
    assert ended["JobState"] == "COMPLETED", f"{ended}\n{output(folder)}"
    return ended


def the_run(folder):
    """The only output folder of the jobs of a folder."""
    (run,) = (folder / "runs").iterdir()
    return run


def events(folder):
    """Names of the events of all runs of a folder."""
    texts = [path.read_text() for path in folder.glob("runs/**/metrics.jsonl")]
    # the last line may be half written
    return [json.loads(line)["event"] for text in texts for line in text.split("\n")[:-1]]


def wait_for_event(cluster, folder, job, name):
    """Wait until a job, which does not end before that, has written an event."""

    def came():
        assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), output(folder)
        return name in events(folder)

    cluster.until(came, f"the first {name}", 200)


def reference(run):
    return torch.load(run / "reference.pt", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def eight(digits):
    """Settings of eight short rounds."""
    return "--data.path", digits, "--schedule.max_rounds", 8, "--algorithm.L", 4, "--run.validate_every", 100


@pytest.fixture(scope="module")
def undisturbed(cluster, eight, tmp_path_factory):
    """The folder of a job that ran to its end on 2 hosts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    completed(cluster, folder, submit(cluster, folder, "lenet_digits", *eight))
    return folder


def test_a_job_runs_to_its_end(undisturbed):
    printed = output(undisturbed)
    assert "2 replicas x 1 rank" in printed
    assert "validation error of the reference" in printed
    assert not our_lines(undisturbed)
    assert reference(the_run(undisturbed))


def test_the_doctor_in_the_jobs_own_shape(cluster, tmp_path):
    completed(cluster, tmp_path, submit(cluster, tmp_path, "lenet_digits", PARLE_HPC_DOCTOR="1"))
    assert "All is well: 2 ranks can train here." in output(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_the_wide_network_on_staged_data(cluster, tmp_path):
    with h5py.File(tmp_path / "cifar10.h5", "w") as file:
        file.attrs.update(name="cifar10", classes=10)
        for part in ("train", "test"):
            file[f"{part}/images"] = raw.images(100, 0)
            file[f"{part}/labels"] = np.arange(100) % 10
    small = ["--model.depth", 10, "--model.widen", 1, "--data.batch_size", 16, "--algorithm.L", 2]
    small += ["--schedule.max_rounds", 1, "--run.validate_every", 1, "--data.preprocessing", "none"]
    job = submit(cluster, tmp_path, "wrn_cifar10", *small, options=TWO_BY_TWO, PARLE_HPC_DATA=str(tmp_path))
    completed(cluster, tmp_path, job)
    assert "2 replicas x 2 ranks" in output(tmp_path)
    assert "round 1/1" in output(tmp_path)
    run = the_run(tmp_path)
    assert reference(run)
    # of the copies, one on each host, none is left, and what the run left knows nothing of them
    data = tomlkit.parse((run / "config.toml").read_text())["data"]
    assert data["path"] == str(tmp_path / "cifar10.h5")
    assert "node_copy" not in data
    assert [host("ls", "/dev/shm").stdout for host in cluster.hosts[:2]] == ["", ""]


def test_an_array_trains_a_run_for_each_seed_and_one_starts_again_alone(cluster, eight, tmp_path):
    options = (*ONE_TASK, "--array=1-2")
    array = submit(cluster, tmp_path, "lenet_digits", *eight, options=options, **at_fault(tmp_path, "listens"))
    # the number of the array is also that of its last task
    first, last = f"{array}_1", f"{array}_2"
    cluster.until(lambda: events(tmp_path).count("round") == 8, "the fault of both")
    cluster.command("scancel", "--signal=USR1", last)
    cluster.until(lambda: cluster.job(last)["Restarts"] == "1", f"the restart of {last}")
    assert cluster.job(first)["Restarts"] == "0"
    cluster.command("scancel", "--signal=USR1", first)
    for job in (first, last):
        assert completed(cluster, tmp_path, job)["Restarts"] == "1"
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name.rpartition("-")[2] for run in runs] == [first, last]
    assert [tomlkit.parse((run / "config.toml").read_text())["run"]["seed"] for run in runs] == [1, 2]
    assert not same(*map(reference, runs))


def test_replicas_that_are_jobs_start_again_alone_and_are_joined_by_another(cluster, eight, tmp_path):
    members = {"options": (*ONE_TASK, "--array=0-2"), **at_fault(tmp_path, "listens")}
    array = submit(cluster, tmp_path, "replica", "lenet_digits", *eight, **members)
    folder = tmp_path / "runs" / f"lenet_digits-mailbox-{array}"

    # who comes a little later begins a little later
    def rounds():
        return [beat and beat.rounds[-1:] for beat in (heartbeat(folder, member) for member in range(3))]

    cluster.until(lambda: rounds() == [[4]] * 3, "the fault of all", 200)
    cluster.command("scancel", "--signal=USR1", array)
    joiner = {"options": (*ONE_TASK, "--array=3"), "PARLE_HPC_MAILBOX": str(folder)}
    joined = submit(cluster, tmp_path, "replica", "lenet_digits", *eight, **joiner)
    for member in range(3):
        assert completed(cluster, tmp_path, f"{array}_{member}")["Restarts"] == "1"
    completed(cluster, tmp_path, f"{joined}_3")
    runs = sorted((folder / "runs").iterdir())
    assert [run.name for run in runs] == ["0", "1", "2", "3"] == sorted(m.name for m in (folder / "members").iterdir())
    assert events(tmp_path).count("resume") == 3
    assert [tomlkit.parse((run / "config.toml").read_text())["run"]["seed"] for run in runs] == [0] * 4


def test_a_signalled_job_saves_starts_again_and_ends_the_same(cluster, eight, undisturbed, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", *eight, **at_fault(tmp_path, "listens"))
    wait_for_event(cluster, tmp_path, job, "round")
    # what --signal does when the time is nearly over
    cluster.command("scancel", "--signal=USR1", job)
    ended = completed(cluster, tmp_path, job)
    assert ended["Restarts"] == "1", output(tmp_path)
    assert f"job {job} is queued again, restart 1 of at most 20" in output(tmp_path)
    assert events(tmp_path).count("resume") == 1
    assert same(reference(the_run(tmp_path)), reference(the_run(undisturbed)))


def test_a_job_starts_again_only_so_often(cluster, eight, tmp_path):
    waits = at_fault(tmp_path, "listens")
    job = submit(cluster, tmp_path, "lenet_digits", *eight, options=ONE_TASK, PARLE_HPC_RESTARTS="0", **waits)
    wait_for_event(cluster, tmp_path, job, "round")
    cluster.command("scancel", "--signal=USR1", job)
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "85:0", "0"), output(tmp_path)
    assert "saved, but started again 0 times already" in output(tmp_path)


def test_a_cancelled_job_leaves_no_process(cluster, eight, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", *eight, **at_fault(tmp_path, "sleeps"))
    wait_for_event(cluster, tmp_path, job, "round")
    assert cluster.processes()
    cluster.command("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    cluster.until(lambda: not cluster.processes(), "the end of every process", 60)
    assert cluster.job(job)["Restarts"] == "0"


def test_the_wrong_mpi_gets_one_line(cluster, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", PARLE_HPC_MPI="none")
    assert cluster.wait(job)["JobState"] == "FAILED"
    (line,) = our_lines(tmp_path)
    assert "Slurm started 2 ranks without PMIx, which Open MPI" in line
    assert "start with srun --mpi=pmix" in line


MODULE = "BASH_FUNC_module%%"


MISSING = [
    ({"PARLE_HPC_DATA": "/nowhere"}, "no data file /nowhere/mnist.h5; on a login node: python -m parle_hpc.data"),
    ({"PARLE_HPC_ROOT": "/nowhere"}, "no slurm/common.sh in /nowhere"),
    ({"PARLE_HPC_RUN": "docker"}, "PARLE_HPC_RUN=docker: must be environment, modules or container"),
    ({"PARLE_HPC_VENV": "/nowhere"}, "no environment /nowhere"),
    ({"PARLE_HPC_LOCAL": "/nowhere"}, "no /nowhere/parle_hpc-"),
    ({"PARLE_HPC_LOCAL": ""}, "data/mnist.h5"),
    ({}, "no data file data/cells.h5; on a login node: python -m parle_hpc.data.prepare cells", "--data.name", "cells"),
    ({}, "no data file /nowhere/x.h5; on a login node", "--data.path=/nowhere/x.h5"),
    ({"PARLE_HPC_RUN": "container"}, "no image "),
    ({"PARLE_HPC_RUN": "modules"}, "PARLE_HPC_MODULES is empty"),
    ({"PARLE_HPC_RUN": "modules", "PARLE_HPC_MODULES": "gcc"}, "no module command on host"),
    ({"PARLE_HPC_RUN": "modules", "PARLE_HPC_MODULES": "gcc", MODULE: "() {  false; }"}, "module load gcc failed"),
]


@pytest.fixture(scope="module")
def lacking(cluster, tmp_path_factory):
    """For each of MISSING a queued job and its folder."""
    queued = []
    for i, (environment, _, *settings) in enumerate(MISSING):
        folder = tmp_path_factory.mktemp(f"lacking{i}")
        (folder / "data").mkdir()
        h5py.File(folder / "data" / "mnist.h5", "w").close()
        queued.append((submit(cluster, folder, "lenet_mnist", *settings, options=ONE_TASK, **environment), folder))
    return queued


@pytest.mark.parametrize("number", range(len(MISSING)), ids=[case[1] for case in MISSING])
def test_what_is_missing_is_said_in_one_line(cluster, lacking, number):
    job, folder = lacking[number]
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), output(folder)
    (line,) = our_lines(folder)
    assert MISSING[number][1] in line


def test_modules_are_loaded_below_the_environment(cluster, tmp_path):
    """The site's module command is a shell function that sbatch brings along, as here."""
    module = {MODULE: "() {  echo module $*; }", "PARLE_HPC_RUN": "modules", "PARLE_HPC_MODULES": "gcc/12 openmpi"}
    completed(cluster, tmp_path, submit(cluster, tmp_path, "lenet_digits", "--help", options=ONE_TASK, **module))
    printed = output(tmp_path)
    assert printed.startswith("module purge\nmodule load gcc/12\nmodule load openmpi\n")
    assert "--data.batch_size" in printed


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_slurm_takes_every_script(cluster, tmp_path, recipe):
    """As on a machine without GPUs, where it would start at once."""
    tested = cluster.command("sbatch", "--test-only", f"{ROOT}/slurm/{recipe}.sbatch", cwd=tmp_path, **SETTINGS)
    assert re.search(r"Job \d+ to start at", tested.stderr)


@pytest.fixture(scope="module")
def bereft(cluster, eight, tmp_path_factory):
    """(number, folder) of jobs that were at work when host2 died; of the last one its script was there."""
    three, first = ("--nodes=3", *TWO_HOSTS[1:]), (*TWO_HOSTS, "--nodelist=host[2-3]")
    jobs = []
    for options, allowed in ((TWO_HOSTS, {}), (three, {"SBATCH_NO_KILL": "set"}), (first, {"SBATCH_NO_KILL": "set"})):
        folder = tmp_path_factory.mktemp("bereft")
        settings, sleeps = (*eight, "--run.checkpoint_every", 1), at_fault(folder, "sleeps")
        job = submit(cluster, folder, "lenet_digits", *settings, options=options, **allowed, **sleeps)
        jobs.append((job, folder))
    for job, folder in jobs:
        wait_for_event(cluster, folder, job, "checkpoint")
    shown = [cluster.job(job) for job, _ in jobs]
    assert [(job["NodeList"], job["BatchHost"]) for job in shown] == [
        ("host[1-2]", "host1"),
        ("host[1-3]", "host1"),
        ("host[2-3]", "host2"),
    ]
    cluster.lose(1)
    return jobs


def test_a_job_starts_again_without_a_host_that_died(cluster, bereft, undisturbed):
    """From here on there are two hosts."""
    job, folder = bereft[0]
    ended = completed(cluster, folder, job)
    assert ended["Restarts"] == "1"
    assert ended["NodeList"] == "host[1,3]"
    assert events(folder).count("resume") == 1
    assert same(reference(the_run(folder)), reference(the_run(undisturbed)))


def test_a_job_that_may_goes_on_at_once_with_fewer_replicas(cluster, bereft):
    job, folder = bereft[1]
    ended = completed(cluster, folder, job)
    assert ended["Restarts"] == "0"
    assert ended["NodeList"] == "host[1,3]"
    assert our_lines(folder) == ["a node has died: goes on with 2 x 1 ranks on host[1,3], from the last checkpoint"]
    assert events(folder).count("resume") == 1
    assert "goes on with 2 x 1 ranks after 3 x 1; only the first 2 replicas are kept" in output(folder)
    assert reference(the_run(folder))


def test_without_its_script_a_job_is_queued_again(cluster, bereft):
    job, _ = bereft[2]
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", "the guard")
    cluster.command("scancel", job)


def test_a_recipe_of_ones_own_with_a_task_of_ones_own(cluster, tmp_path):
    write(tmp_path)
    (tmp_path / "mine.toml").write_text('[task]\nfile = "sine.py"\n[data]\nbatch_size = 40\nworkers = 1\n')
    settings = ("--schedule.lr", "0.02", "--schedule.max_rounds", "2", "--algorithm.L", "5")
    completed(cluster, tmp_path, submit(cluster, tmp_path, "own", "mine.toml", *settings))
    assert "validation close of the reference" in output(tmp_path)
    assert tomlkit.parse((the_run(tmp_path) / "config.toml").read_text())["task"]["file"] == str(tmp_path / "sine.py")


def test_without_a_recipe_the_script_for_ones_own_says_what_it_wants(cluster, tmp_path):
    ended = cluster.wait(submit(cluster, tmp_path, "own", "no.toml", options=ONE_TASK))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert our_lines(tmp_path) == ["no recipe no.toml; sbatch slurm/own.sbatch mine.toml [SETTING ...]"]
