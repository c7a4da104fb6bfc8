"""What the environment says of ranks, and nothing of MPI stands behind: the right value, or one line that says so."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.mpi import COLD, ENVIRONMENT, mpirun, our_lines
from helpers.planted import DOCTOR, alone, changes
from helpers.trainer import TRAIN

from parle_hpc.cluster import leftovers
from parle_hpc.cluster.start import prepare_environment, threads_are_chosen
from parle_hpc.errors import BadInput

SHORT = ("--schedule.max_rounds", "1", "--algorithm.L", "2", "--data.samples", "200")
ONE = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture(scope="module")
def ended():
    """What an mpirun that has ended told its only rank."""
    told = mpirun(1, "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    told = json.loads(told.stdout)
    return {name: value for name, value in told.items() if {**os.environ, **ENVIRONMENT}.get(name) != value}


def train(folder, **environment):
    return alone(*TRAIN, *SHORT, "--out", folder, **environment)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        (ONE, None),
        # as in a shell of srun, where Open MPI ends what has no server of PMIx
        ({**ONE, "SLURM_JOBID": "77", "SLURM_STEPID": "0", "SLURM_STEP_ID": "0", "SLURM_NODELIST": "here"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}, None),
        ({"TMPDIR": "/proc/none", "OPAL_PREFIX": "/opt/of/another", "OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "many"}, None),
    ],
    ids=["step of one", "shell of srun", "gloo", "folders of others, one thread", "one of MKL's", "no number"],
)
def test_one_process_trains(tmp_path, variables, threads):
    result = train(tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    assert our_lines(result) == []
    threads = threads or len(os.sched_getaffinity(0))
    assert f", cpu in fp32, {threads} thread{'s' * (threads > 1)} a rank\n" in result.stdout


@pytest.mark.cluster
def test_an_empty_number_of_threads_under_mpirun_is_none(tmp_path):
    result = mpirun(1, *TRAIN, *SHORT, "--out", tmp_path, python=COLD, OMP_NUM_THREADS="")
    threads = len(os.sched_getaffinity(0))
    assert f", cpu in fp32, {threads} thread{'s' * (threads > 1)} a rank\n" in result.stdout, result.stderr


@pytest.mark.cluster
def test_what_an_mpirun_of_one_rank_has_left_is_forgotten(tmp_path, ended):
    assert ended["OMPI_COMM_WORLD_SIZE"] == "1"
    result = train(tmp_path, **ended)
    assert (result.returncode, our_lines(result)) == (0, []), result.stderr


REFUSED = [
    ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 and WORLD_SIZE=2 are of torchrun or its like", "RANK WORLD_SIZE"),
    ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "are of horovodrun --gloo or its like", "HOROVOD_RANK HOROVOD_SIZE"),
    (
        {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"},
        "Flux started 2 ranks, but Open MPI v4",
        "FLUX_TASK_RANK FLUX_JOB_SIZE",
    ),
    (
        {"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "2"},
        "JSM started 2 ranks, but Open MPI v4",
        "JSM_NAMESPACE_RANK JSM_NAMESPACE_SIZE",
    ),
    (
        {**ONE, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEPID": "0"},
        "Slurm started 4 ranks without PMIx",
        "SLURM_PROCID SLURM_STEP_NUM_TASKS",
    ),
]


@pytest.mark.parametrize(("variables", "line", "names"), REFUSED, ids=[line for _, line, _ in REFUSED])
@pytest.mark.cluster
def test_several_that_are_no_ranks_get_one_line(tmp_path, variables, line, names):
    """And with what the line says the same process trains."""
    result = train(tmp_path, **variables)
    (said,) = our_lines(result)
    assert line in said
    assert said.endswith(f"unset {names}")
    assert result.returncode == 2
    assert not list(tmp_path.iterdir())
    kept = {name: value for name, value in variables.items() if name not in names.split()}
    assert train(tmp_path, **kept).returncode == 0


@pytest.mark.cluster
def test_what_an_mpirun_of_several_ranks_has_left_is_named(tmp_path, ended):
    left = {**ended, "OMPI_COMM_WORLD_SIZE": "2"}
    (line,) = our_lines(train(tmp_path, **left))
    assert line.startswith("OMPI_COMM_WORLD_RANK=0 and OMPI_COMM_WORLD_SIZE=2 are of an mpirun that does not answer")
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
    assert f"unset {' '.join(names)};" in line
    result = alone(*DOCTOR, "--out", tmp_path, **left)
    assert changes(result) == [f"1. {line}"]
    result = train(tmp_path, **{name: value for name, value in left.items() if name not in names})
    assert (result.returncode, our_lines(result)) == (0, []), result.stderr


@pytest.mark.cluster
def test_a_variable_that_hides_the_gpus_is_named(tmp_path):
    result = alone(*TRAIN, *SHORT, "--run.device", "cuda", "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    (line,) = our_lines(result)
    assert "torch finds no GPU here" in line
    assert "unset CUDA_VISIBLE_DEVICES, which is '' and may hide it" in line
    assert result.returncode == 2


@pytest.mark.cluster
def test_a_process_that_takes_itself_for_another_rank_is_heard(tmp_path):
    """After the time in which rank 0, if there is one, would have spoken and been the end of all."""
    mpirun = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    srun = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_TASK_PID": str(2**30)}
    nowhere = ("-m", "parle_hpc.evaluate", tmp_path / "nowhere")
    jobs = [(TRAIN, {"RANK": "1", "WORLD_SIZE": "2"}), (TRAIN, mpirun), (TRAIN, srun), (DOCTOR, mpirun)]
    jobs += [((*TRAIN, "--typo"), mpirun), (nowhere, mpirun)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda job: alone(*job[0], **job[1]), jobs))
    lines = [line for i in (0, 1, 2, 4, 5) for line in our_lines(results[i])]
    assert ["unset" in line for line in lines] == [True, True, True, False, False], lines
    assert "unset" in changes(results[3])[0]
    assert [result.returncode for result in results] == [2, 2, 2, 1, 2, 2]


@pytest.mark.cluster
@pytest.mark.parametrize("program", [TRAIN, DOCTOR])
def test_torchrun_gets_one_line(tmp_path, program):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *program,
        "--out",
        tmp_path,
    ]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM"))}
    options = {"env": {**outside, **ENVIRONMENT}, "capture_output": True, "text": True, "timeout": 200}
    result = subprocess.run(list(map(str, command)), **options)
    assert result.returncode != 0
    line = "=2 are of torchrun or its like, which starts no ranks of MPI; start with mpirun -np 2"
    assert (result.stdout + result.stderr).count(line) == 1
    assert not list(tmp_path.iterdir())


def test_a_server_of_pmix_answers_while_it_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {"PMIX_RANK": "0", "PMIX_SERVER_URI21": f"1.0;tcp4://127.0.0.1:{server.getsockname()[1]}"}
        assert leftovers.pmix_answers(told)
    assert not leftovers.pmix_answers(told)
    # an address of a kind that is not known
    assert leftovers.pmix_answers({"PMIX_RANK": "0", "PMIX_SERVER_URI": "pmix-server:1:/tmp/socket"})
    assert not leftovers.pmix_answers({})


def test_a_task_of_slurm_is_an_ancestor():
    assert leftovers.is_task({"SLURM_TASK_PID": str(os.getpid())})
    assert leftovers.is_task({"SLURM_TASK_PID": str(os.getppid())})
    assert not leftovers.is_task({"SLURM_TASK_PID": str(2**30)})
    assert leftovers.is_task({})


def test_an_mpirun_for_each_task_of_srun():
    told = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "SLURM_TASK_PID": str(os.getpid())}
    told |= {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://x:1", "OMPI_MCA_orte_local_daemon_uri": "1.0;tcp://x:1"}
    told |= {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    with pytest.raises(BadInput, match="task 1 of 2 that srun has started is an mpirun"):
        leftovers.launched(told)
    for right in (
        {"SLURM_PROCID": "0"},
        {"SLURM_TASK_PID": str(2**30)},
        {"OMPI_MCA_orte_local_daemon_uri": "1.1;tcp://y:1"},
    ):
        assert leftovers.launched({**told, **right}).launcher == "Open MPI"


@pytest.mark.parametrize("value", ["1", " 2 ", "4,2", "+3", "08"])
def test_threads_that_the_user_has_chosen(value):
    assert threads_are_chosen({"OMP_NUM_THREADS": value})
    assert threads_are_chosen({"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": value})


@pytest.mark.parametrize("value", ["", " ", "0", "-1", "two", "1x", "1.5", ",2"])
def test_what_is_no_number_of_threads(value):
    assert not threads_are_chosen({"OMP_NUM_THREADS": value, "MKL_NUM_THREADS": value})


def test_a_folder_for_temporary_files_that_is_not_there(tmp_path):
    for folder, kept in ((tmp_path, True), (tmp_path / "none", False), ("", False)):
        environment = {"TMPDIR": str(folder)}
        prepare_environment(environment, 4)
        assert ("TMPDIR" in environment) == kept
