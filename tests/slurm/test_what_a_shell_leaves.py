"""What stood in the shell where something was started does not become the job's; on a Slurm that binds to cores."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tomlkit
from helpers.slurm_cluster import SlurmCluster, needs_slurm
from helpers.trainer import TRAIN

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = {"PARLE_HPC_ROOT": str(ROOT), "PARLE_HPC_VENV": sys.prefix, "SBATCH_GPUS_PER_NODE": "0"}
SHORT = ("--schedule.max_rounds", "1", "--algorithm.L", "2", "--data.samples", "200")
ONE_HOST = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1")
TRAINED = "validation error of the reference"
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
MPIRUN |= {"OMPI_MCA_ess": "^singleton", "OMPI_MCA_ess_base_vpid": "3", "OMPI_MCA_orte_ess_num_procs": "8"}
MPIRUN |= {"PMI_RANK": "1", "PMI_SIZE": "8", "RANK": "1", "WORLD_SIZE": "8", "HOROVOD_CONTROLLER": "gloo"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), needs_slurm]


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(1, TaskPlugin="task/affinity") as cluster:
        yield cluster


def assigned(variables):
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def completed(cluster, job, folder):
    """What the job `job` of a folder printed; it must end well."""
    ended = cluster.wait(job)
    printed = "".join(path.read_text() for path in folder.glob("*.out"))
    assert ended["JobState"] == "COMPLETED", f"{ended}\n{printed}"
    assert "parle_hpc: " not in printed
    return printed


def the_run(folder):
    (run,) = (folder / "runs").iterdir()
    return run.name, tomlkit.parse((run / "config.toml").read_text())["run"]["seed"]


def test_a_job_that_is_queued_inside_others(cluster, tmp_path):
    """From a shell of srun, bound to a core, with what a task of an array and a rank of an mpirun have left."""
    memory = {f"SLURM_MEM_PER_{of}": "100" for of in ("CPU", "NODE", "GPU")}
    left = assigned({**JOB, **MPIRUN, **ARRAY, **memory, "SLURM_CPU_BIND": "quiet,mask_cpu:0x10"})
    script = ROOT / "slurm" / "lenet_digits.sbatch"
    inside = ("srun", "--ntasks=1", "--mpi=pmix")
    queued = cluster.command(*inside, *left, "sbatch", "--parsable", *ONE_HOST, script, *SHORT, cwd=tmp_path)
    job = queued.stdout.strip()
    printed = completed(cluster, job, tmp_path)
    assert "2 replicas x 1 rank" in printed
    assert TRAINED in printed
    assert the_run(tmp_path) == (f"lenet_digits-{job}", 0)


def test_a_job_that_is_given_no_environment(cluster, tmp_path):
    """As by --export=NONE, which some sites make the default."""
    given = {**JOB, "PMIX_MCA_psec": "native", "OMPI_MCA_btl_tcp_if_include": "e0"}
    export = ",".join(f"{name}={value}" for name, value in given.items())
    script = ROOT / "slurm" / "lenet_digits.sbatch"
    job = cluster.sbatch(f"--export={export}", *ONE_HOST, script, *SHORT, cwd=tmp_path, SBATCH_GPUS_PER_NODE="0")
    printed = completed(cluster, job, tmp_path)
    assert "2 replicas x 1 rank" in printed
    assert TRAINED in printed


# What is typed on the login host, in one allocation: a name, the command, variables, and what comes of it
RUN = (sys.executable, *TRAIN, *SHORT)
SRUN = ("srun", "--mpi=pmix", "--ntasks=2")
SHELL = ("srun", "--mpi=none", "--ntasks=1")
EXACT = ("srun", "--mpi=pmix", "--ntasks=1", "--exact")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
MPIRUNS = (Path(sys.prefix) / "bin" / "mpirun", "--oversubscribe", "-np")
TYPED = {
    "shell": ((*SHELL, *RUN), {}, 0, "1 replica x 1 rank"),
    "shell of pmix": (("srun", "--mpi=pmix", "--ntasks=1", *RUN), {}, 0, "1 replica x 1 rank"),
    "mpirun in a shell": ((*SHELL, *MPIRUNS, "2", *RUN), {}, 0, "2 replicas x 1 rank"),
    "left by an mpirun": ((*SRUN, *RUN), MPIRUN, 0, "2 replicas x 1 rank"),
    "mpirun in each task": ((*SRUN, *MPIRUNS, "1", *RUN), {}, 2, "start with mpirun alone, or with srun --mpi=pmix"),
    "several in a shell": (("srun", "--mpi=none", "--ntasks=2", *RUN), {}, 2, "Slurm started 2 ranks without PMIx"),
    "torchrun in a shell": (
        ("srun", "--mpi=pmix", "--ntasks=1", *TORCHRUN, *TRAIN, *SHORT),
        {},
        1,
        "RANK=0 and WORLD_SIZE=2 are of torchrun",
    ),
    "two at once": (
        ("sh", "-c", '"$@" --run.seed 1 & "$@" --run.seed 2 & wait', "", *EXACT, *RUN),
        {},
        0,
        TRAINED,
    ),
}


@pytest.fixture(scope="module")
def typed(cluster, tmp_path_factory):
    """For each of TYPED the status, what was printed, the job's number and the folder, in one allocation."""
    folders = {name: tmp_path_factory.mktemp("typed") for name in TYPED}
    job = cluster.sbatch(*ONE_HOST, "--output=/dev/null", "--wrap=sleep 1000", cwd=folders["shell"])
    cluster.wait(job, ("RUNNING",))
    in_it = {"SLURM_JOB_ID": job, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    told = {}

    def one_by_one(names, **more):
        for name in names:
            command, variables, _, _ = TYPED[name]
            options = {"check": False, "timeout": 200, "cwd": folders[name], **in_it, **variables, **more}
            result = cluster.command(*command, **options)
            told[name] = (result.returncode, result.stdout + result.stderr, job, folders[name])

    first, *others = TYPED
    one_by_one([first])
    # where a rank is refused, the others give it time to speak; and meanwhile the rest is typed in a second window
    refused = [name for name in others if TYPED[name][2]]
    with ThreadPoolExecutor() as windows:
        waited_for = windows.submit(one_by_one, refused, SLURM_OVERLAP="1")
        one_by_one([name for name in others if name not in refused])
    waited_for.result()
    cluster.command("scancel", job)
    return told


@pytest.mark.parametrize("name", TYPED)
def test_what_is_typed_in_an_allocation_is_right_or_gets_one_line(typed, name):
    status, printed, _, _ = typed[name]
    _, _, expected, line = TYPED[name]
    assert status == expected, printed
    assert line in printed
    assert printed.count("parle_hpc: ") == (expected != 0)


def test_two_steps_of_one_allocation_have_a_folder_each(typed):
    _, printed, job, folder = typed["two at once"]
    runs = sorted((folder / "runs").iterdir())
    names = [run.name for run in runs]
    assert len(names) == 2, printed
    assert all(name.startswith(f"lenet_digits-{job}.") for name in names)
    seeds = {tomlkit.parse((run / "config.toml").read_text())["run"]["seed"] for run in runs}
    assert seeds == {1, 2}


def test_a_first_step_has_the_jobs_name(typed):
    _, _, job, folder = typed["shell"]
    assert [run.name for run in (folder / "runs").iterdir()] == [f"lenet_digits-{job}"]


STAND_IN = """#!/bin/sh
env > singularity.env
while [ "$1" != image.sif ]; do shift; done
shift
exec "$@"
"""


def test_singularity_is_apptainer_under_another_name(cluster, tmp_path):
    (tmp_path / "singularity").write_text(STAND_IN)
    (tmp_path / "singularity").chmod(0o755)
    (tmp_path / "image.sif").write_text("")
    path = os.pathsep.join([str(tmp_path), str(Path(sys.prefix) / "bin"), os.environ["PATH"]])
    container = {"PARLE_HPC_RUN": "container", "PARLE_HPC_IMAGE": "image.sif", "PATH": path}
    container |= {"APPTAINERENV_OF_THE_SITE": "there it is", "PYTHONHOME": "/of/the/login/shell"}
    script = ROOT / "slurm" / "lenet_digits.sbatch"
    job = cluster.sbatch(*ONE_HOST, script, *SHORT, cwd=tmp_path, **{**JOB, **container})
    assert TRAINED in completed(cluster, job, tmp_path)
    environment = (tmp_path / "singularity.env").read_text().splitlines()
    assert "SINGULARITYENV_OF_THE_SITE=there it is" in environment
    # Slurm's own bound, which --run.patience does not reach; and that the first rank to fail ends the others
    assert {"SLURM_PMIX_TIMEOUT=86400", "SLURM_KILL_BAD_EXIT=1"} <= set(environment)
    assert not {"PYTHONHOME", "PYTHONPATH"} & {line.split("=")[0] for line in environment}
