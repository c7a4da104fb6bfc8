"""The batch scripts of slurm/, as they are, on a real Slurm, with sizes turned down."""

import json
import re
import sys
from pathlib import Path

import h5py
import pytest
import tomlkit
import torch
from helpers.slurm_cluster import SlurmCluster, needs_slurm

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
ONE_TASK = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
LONG = ("--schedule.max_rounds", 10, "--algorithm.L", 10, "--run.validate_every", 100)

pytestmark = needs_slurm


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(3) as cluster:
        yield cluster


def submit(cluster, folder, recipe, *settings, options=TWO_BY_TWO, **environment):
    """The number of a queued job that runs in `folder`."""
    script = ROOT / "slurm" / f"{recipe}.sbatch"
    return cluster.sbatch(*options, script, *settings, cwd=folder, **{**SETTINGS, **environment})


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
    texts = [path.read_text() for path in folder.glob("runs/*/metrics.jsonl")]
    # the last line may be half written
    return [json.loads(line)["event"] for text in texts for line in text.split("\n")[:-1]]


def wait_for_event(cluster, folder, job, name):
    """Wait until a job, in the middle of its training, has written an event."""

    def came():
        assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), output(folder)
        return name in events(folder)

    cluster.until(came, f"the first {name}", 120)


def reference(run):
    return torch.load(run / "reference.pt", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """The folder of a job that ran to its end on 2 hosts of 2 tasks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    completed(cluster, folder, submit(cluster, folder, "lenet_digits", *LONG))
    return folder


def test_a_job_runs_to_its_end(undisturbed):
    printed = output(undisturbed)
    assert "2 replicas x 2 ranks" in printed
    assert "validation error of the reference" in printed
    assert not our_lines(undisturbed)
    assert reference(the_run(undisturbed))


def test_the_doctor_in_the_jobs_own_shape(cluster, tmp_path):
    completed(cluster, tmp_path, submit(cluster, tmp_path, "lenet_digits", PARLE_HPC_DOCTOR="1"))
    assert "All is well: 4 ranks can train here." in output(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_the_wide_network_on_staged_data(cluster, cifar10, tmp_path):
    small = ["--model.depth", 10, "--model.widen", 1, "--data.batch_size", 16, "--algorithm.L", 3]
    small += ["--schedule.max_rounds", 2, "--run.validate_every", 1]
    job = submit(cluster, tmp_path, "wrn_cifar10", *small, PARLE_HPC_DATA=str(cifar10.parent))
    completed(cluster, tmp_path, job)
    assert "round 2/2" in output(tmp_path)
    run = the_run(tmp_path)
    assert reference(run)
    # of the copies, one on each host, none is left
    copy = f"/dev/shm/parle_hpc-{job}-cifar10.h5"
    assert tomlkit.parse((run / "config.toml").read_text())["data"]["path"] == copy
    assert [host("ls", "/dev/shm").stdout for host in cluster.hosts[:2]] == ["", ""]


def test_an_array_trains_a_run_for_each_seed(cluster, tmp_path):
    options = (*ONE_TASK, "--ntasks-per-node=2", "--array=1-2")
    job = submit(cluster, tmp_path, "lenet_digits", "--schedule.max_rounds", 1, options=options)
    for task in (1, 2):
        completed(cluster, tmp_path, f"{job}_{task}")
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name.rpartition("-")[2] for run in runs] == [f"{job}_1", f"{job}_2"]
    assert [tomlkit.parse((run / "config.toml").read_text())["run"]["seed"] for run in runs] == [1, 2]
    assert not same(*map(reference, runs))


def test_a_signalled_job_saves_starts_again_and_ends_the_same(cluster, undisturbed, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", *LONG)
    wait_for_event(cluster, tmp_path, job, "round")
    # what --signal does when the time is nearly over
    cluster.command("scancel", "--signal=USR1", job)
    ended = completed(cluster, tmp_path, job)
    assert ended["Restarts"] == "1", output(tmp_path)
    assert f"job {job} is queued again, restart 1 of at most 20" in output(tmp_path)
    assert events(tmp_path).count("resume") == 1
    assert same(reference(the_run(tmp_path)), reference(the_run(undisturbed)))


def test_a_job_starts_again_only_so_often(cluster, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", *LONG, options=ONE_TASK, PARLE_HPC_RESTARTS="0")
    wait_for_event(cluster, tmp_path, job, "round")
    cluster.command("scancel", "--signal=USR1", job)
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "85:0", "0"), output(tmp_path)
    assert "saved, but started again 0 times already" in output(tmp_path)


def test_a_cancelled_job_leaves_no_process(cluster, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", *LONG)
    wait_for_event(cluster, tmp_path, job, "round")
    assert cluster.processes()
    cluster.command("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    cluster.until(lambda: not cluster.processes(), "the end of every process", 20)
    assert cluster.job(job)["Restarts"] == "0"


def test_the_wrong_mpi_gets_one_line(cluster, tmp_path):
    job = submit(cluster, tmp_path, "lenet_digits", PARLE_HPC_MPI="none")
    assert cluster.wait(job, timeout=60)["JobState"] == "FAILED"
    (line,) = our_lines(tmp_path)
    assert "Slurm started 4 ranks without PMIx, which Open MPI" in line
    assert "start with srun --mpi=pmix" in line


MODULE = "BASH_FUNC_module%%"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PARLE_HPC_DATA": "/nowhere"}, "no data file /nowhere/mnist.h5; on a login node: python -m parle_hpc.data"),
        ({"PARLE_HPC_ROOT": "/nowhere"}, "no slurm/common.sh in /nowhere"),
        ({"PARLE_HPC_RUN": "docker"}, "PARLE_HPC_RUN=docker: must be environment, modules or container"),
        ({"PARLE_HPC_VENV": "/nowhere"}, "no environment /nowhere"),
        ({"PARLE_HPC_LOCAL": "/nowhere"}, "no /nowhere/parle_hpc-"),
        ({"PARLE_HPC_LOCAL": ""}, "data/mnist.h5"),
        ({"PARLE_HPC_RUN": "container"}, "no image "),
        ({"PARLE_HPC_RUN": "modules"}, "PARLE_HPC_MODULES is empty"),
        ({"PARLE_HPC_RUN": "modules", "PARLE_HPC_MODULES": "gcc"}, "no module command on host"),
        ({"PARLE_HPC_RUN": "modules", "PARLE_HPC_MODULES": "gcc", MODULE: "() {  false; }"}, "module load gcc failed"),
    ],
)
def test_what_is_missing_is_said_in_one_line(cluster, tmp_path, environment, words):
    (tmp_path / "data").mkdir()
    h5py.File(tmp_path / "data" / "mnist.h5", "w").close()
    ended = cluster.wait(submit(cluster, tmp_path, "lenet_mnist", options=ONE_TASK, **environment))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), output(tmp_path)
    (line,) = our_lines(tmp_path)
    assert words in line


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


def test_a_job_goes_on_without_a_host_that_died(cluster, undisturbed, tmp_path):
    """The last test, which leaves two hosts."""
    often = ("--run.checkpoint_every", 1)
    job = submit(cluster, tmp_path, "lenet_digits", *LONG, *often)
    wait_for_event(cluster, tmp_path, job, "checkpoint")
    assert cluster.job(job)["NodeList"] == "host[1-2]"
    cluster.lose(1)
    ended = completed(cluster, tmp_path, job)
    assert ended["Restarts"] == "1"
    assert ended["NodeList"] == "host[1,3]"
    assert events(tmp_path).count("resume") == 1
    assert same(reference(the_run(tmp_path)), reference(the_run(undisturbed)))
