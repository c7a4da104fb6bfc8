"""The doctor: what it makes of facts, and what it says of a sound machine and of planted faults."""

import os
import subprocess
import sys

import pytest
from helpers.mpi import COLD, ENVIRONMENT, mpirun, our_lines
from helpers.namespaces import Cluster, why_not
from helpers.planted import DOCTOR, alone, at_once, changes, hurried, on_core, table, two_mpi_libraries

from parle_hpc.cluster.diagnosis import findings
from parle_hpc.cluster.diagnosis.findings import Rank, Sight
from parle_hpc.cluster.gpus import Seat
from parle_hpc.cluster.hold import Hold

CORES = os.sched_getaffinity(0)
ENOUGH = "All is well: "


def ranks(*places, versions=()):
    """Ranks from (host, cores), with versions of torch where given."""
    found = []
    for number, (host, cores) in enumerate(places):
        version = versions[number] if versions else "1"
        found.append(Rank(number, host, frozenset(cores), 8, "device", {"torch": version}))
    return found


def seats(*cards, nccl=True):
    """Seats of ranks that take these GPUs, two on host a and the others on host b; None for none."""
    hosts = zip("aabb", (0, 0, 2, 2), cards, strict=False)
    return [
        Seat(rank, host, node, nccl, *((2, rank % 2, card, card) if card else (0,)))
        for rank, (host, node, card) in enumerate(hosts)
    ]


def sights(*two, **differs):
    return [Sight(0, "a", True, True, free=10**12), Sight(1, "b", **{"seen": True, "exists": True, **differs})]


def test_spans():
    assert findings.spans({5, 0, 2, 1}) == "0-2,5"
    assert findings.spans([3]) == "3"


@pytest.mark.parametrize(
    ("places", "who"),
    [
        ([("a", {0, 1}), ("a", {0, 1})], None),  # not bound, a core for each
        ([("a", {0}), ("a", {1})], None),
        ([("a", {0}), ("b", {0})], None),
        ([("a", {0}), ("a", {0})], "ranks 0-1 on a take turns on core 0 of its 8"),
        ([("a", {4}), ("b", {0}), ("b", {1}), ("b", {1})], "ranks 2-3 on b take turns on core 1 of its 8"),
        ([("a", range(8))] * 9, "ranks 0-8 on a take turns on cores 0-7 of its 8"),
    ],
)
def test_shared_cores(places, who):
    found = findings.shared_cores(ranks(*places), "Slurm")
    assert len(found) == (who is not None)
    if who:
        assert found[0].startswith(f"{who}; ")
        assert ("SRUN_CPUS_PER_TASK" in found[0]) == ("0-7" not in found[0])
        assert "--ntasks-per-node=" in found[0]


def test_shared_gpus():
    assert findings.shared_gpus(seats(None, None, None, None), 2, "Slurm") == []
    assert findings.shared_gpus(seats("A", "B", "A", "B"), 2, "Slurm") == []
    for m, inside in ((1, False), (2, True)):
        (shared,) = findings.shared_gpus(seats("A", "B", "A", "A"), m, "Open MPI")
        assert shared.startswith("ranks 2-3 on b share one GPU")
        assert shared.endswith("mpirun --map-by ppr:2:node")
        assert ("over the host's memory" in shared) == inside
    (some,) = findings.shared_gpus(seats("A", "B", None, None), 2, "Slurm")
    assert some.startswith("ranks 2-3 on b see no GPU, the others do; ask for GPUs on every node (#SBATCH")


def test_gradients_over_the_host():
    two = seats("A", "B", nccl=False)
    assert len(findings.slow_gradients(two, 2)) == 1
    assert findings.slow_gradients(two, 1) == findings.slow_gradients(seats("A", "B"), 2) == []
    assert findings.slow_gradients(seats(None, None, nccl=False), 2) == []


def test_versions_that_differ():
    three = [("a", {0}), ("b", {0}), ("c", {0})]
    assert findings.different_versions(ranks(*three)) == []
    (line,) = findings.different_versions(ranks(*three, versions=("2.13", "2.13", "2.12")))
    assert line.startswith("torch differs: 2.13 on a b, 2.12 on c; ")


def test_output_folder():
    def found(locking=None, **differs):
        return findings.folder(sights(**differs), "/runs", locking)

    assert found() == []
    (line,) = found(seen=False)
    assert line.startswith("the output folder /runs is not shared: the one that rank 0 on a sees is another one on b; ")
    assert "--out FOLDER" in line
    assert "is not there on b" in found(seen=False, exists=False)[0]
    assert found(write_error="No space left") == [
        "--out /runs: cannot be written on b (No space left); give a folder that can"
    ]
    assert found("FALSE", lock_error="No locks") == found(lock_error="No locks") == []
    assert "export HDF5_USE_FILE_LOCKING=FALSE" in found("TRUE", lock_error="No locks")[0]
    assert found(free=2_500_000)[0].startswith("2.5 MB are free in /runs on b; ")


# a library that does not give the interpreter back, a crash, an end without a word, and two ends that are meant
HELD = "import ctypes; ctypes.PyDLL(None).sleep(60)"


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (HELD, 1, "the work did not end within 1 s; do that"),
        ("os.kill(os.getpid(), 11)", 1, "the work ended the process (signal SIGSEGV), see what stands above; do that"),
        ("os._exit(0)", 1, "the work ended the process (status 0), see what stands above; do that"),
        ("step(LAST, 100, '')", 0, None),
        ("step(LAST, 100, ''); sys.exit(2)", 2, None),
    ],
)
def test_steps_are_bounded_from_outside(body, status, line):
    program = (
        "import os, sys\nfrom parle_hpc.cluster.diagnosis.supervise import LAST, supervised\nstep = supervised(0)\n"
    )
    # what ends by itself has time for it
    result = alone("-c", f"{program}step('the work', {1 if body == HELD else 100}, 'do that')\n{body}")
    assert result.returncode == status
    assert [said.partition(": ")[2] for said in our_lines(result)] == ([line] if line else [])


@pytest.mark.cluster
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sound_machine(count, tmp_path):
    result = mpirun(count, *DOCTOR, "--out", tmp_path / "new" / "runs", python=COLD)
    crowded = count > len(CORES)
    assert result.returncode == crowded, result.stderr
    n = 2 if count > 1 else 1
    everyone = table(result, "rank")
    assert [row[:2] for row in everyone] == [[str(rank), str(rank * n // count)] for rank in range(count)]
    assert {row[4] for row in everyone} == {findings.spans(CORES)}
    assert table(result, "output folder on")[0][1:4] == ["yes", "yes", "yes"]
    inside, across = table(result, "mean of tensors")
    assert inside[1:] == ["1", "sends nothing"] if count < 4 else len(inside) == 5
    assert across[1:] == ["1", "sends nothing"] if count == 1 else len(across) == 5
    software = dict(row for row in table(result, "software") if len(row) == 2)
    assert software["torch"].startswith("2")
    assert "libmpi" in software["MPI library"]
    assert f"{count} rank" in software["launcher"]
    if crowded:
        (line,) = changes(result)
        assert f"ranks 0-{count - 1} on " in line
        assert "take turns" in line
    else:
        assert ENOUGH in result.stdout
    assert not list((tmp_path / "new" / "runs").iterdir())


@pytest.mark.cluster
def test_a_wrong_pmi_is_said_once():
    """Two processes that the launcher counts as 2 ranks and MPI, started without it, as 2 worlds of 1."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM"))}
    jobs = {"Slurm": [], "PMI": []}
    for rank in range(2):
        for launcher, variables in (
            ("Slurm", {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(rank)}),
            ("PMI", {"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank)}),
        ):
            command, streams = [sys.executable, *at_once()], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            environment = {**outside, **ENVIRONMENT, **variables}
            jobs[launcher].append(subprocess.Popen(command, env=environment, text=True, **streams))
    for launcher, tasks in jobs.items():
        outputs = [task.communicate(timeout=200) for task in tasks]
        assert [task.returncode for task in tasks] == [1, 1]
        report, _, line = outputs[0][0].partition("What to change\n")
        assert report.startswith("software")
        assert line.startswith(f"1. {launcher} started 2 ranks")
        assert "they do not fit; start with " in line
        assert ("srun --mpi=pmix" in line) == (launcher == "Slurm")
        assert line.count("\n") == 1
        assert (outputs[0][1], outputs[1]) == ("", ("", ""))


@pytest.mark.cluster
def test_two_mpi_libraries(tmp_path):
    planted, both = two_mpi_libraries(tmp_path)
    result = mpirun(2, *DOCTOR, **planted, python=COLD)
    assert result.returncode == 1
    (line,) = changes(result)
    assert line.startswith(f"1. mpi4py and Horovod load different MPI libraries: {' and '.join(both)}; ")
    assert "python install/horovod.py" in line
    assert result.stdout.count("different MPI libraries") == 1
    assert our_lines(result) == []
    # the trainer says the same
    result = alone("-m", "parle_hpc.train", **planted)
    assert result.returncode == 2
    assert our_lines(result) == [line.removeprefix("1. ")]


@pytest.mark.cluster
def test_all_ranks_on_one_core(tmp_path):
    core = min(CORES)
    result = mpirun(2, *on_core(core, *DOCTOR, "--out", tmp_path), python=COLD)
    assert result.returncode == 1
    (line,) = changes(result)
    assert line.startswith("1. ranks 0-1 on ")
    assert f"take turns on core {core} of its {os.cpu_count()}; " in line
    assert ("mpirun --bind-to none" in line) == (os.cpu_count() > 1)


@pytest.mark.cluster
@pytest.mark.skipif(why_not() is not None, reason=f"no hosts as network namespaces: {why_not()}")
def test_hosts_and_a_folder_that_they_do_not_share(tmp_path):
    with Cluster(2) as cluster:
        sound = cluster.mpirun(4, *DOCTOR, "--out", tmp_path)
        cluster.hosts[1]("mount", "-t", "tmpfs", "tmpfs", tmp_path)
        private = cluster.mpirun(2, *DOCTOR, "--out", tmp_path)
    assert [row[:3] for row in table(sound, "rank")] == [
        ["0", "0", "host1"],
        ["1", "0", "host1"],
        ["2", "1", "host2"],
        ["3", "1", "host2"],
    ]
    assert [row[:2] for row in table(sound, "output folder on")] == [["host1", "yes"], ["host2", "yes"]]
    assert not any("not shared" in line for line in changes(sound))
    assert private.returncode == 1
    assert [row[:2] for row in table(private, "output folder on")] == [["host1", "yes"], ["host2", "no"]]
    (line,) = [line for line in changes(private) if "not shared" in line]
    assert (
        f"the output folder {tmp_path} is not shared: the one that rank 0 on host1 sees is another one on host2" in line
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
def test_a_rank_that_does_not_come():
    result = mpirun(1, *hurried("the start of MPI", "--wait", "120"), ":", "-np", "1", "sleep", "1000", python=COLD)
    (line,) = our_lines(result)
    assert "the start of MPI did not end within 3 s; start all ranks with one command" in line
    assert "rank 0 on " in line
    assert result.returncode == 1


def test_an_mpi_that_ends_the_process(tmp_path):
    """An MPI library whose start calls exit, as Open MPI's does where its files are missing."""
    preloaded = preload(tmp_path, "int MPI_Init_thread(int *c, char ***v, int r, int *p) { exit(7); }")
    result = alone(*DOCTOR, LD_PRELOAD=preloaded)
    (line,) = our_lines(result)
    assert "the start of MPI ended the process (status 7), see what stands above; " in line
    assert result.returncode == 1


def test_without_mpi4py(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('libmpi.so.12: cannot open shared object file')")
    result = alone(*DOCTOR, PYTHONPATH=os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]]))
    (line,) = changes(result)
    assert line.startswith("1. mpi4py cannot be loaded (libmpi.so.12: cannot open shared object file); ")
    assert "Horovod" in result.stdout
    assert result.returncode == 1


@pytest.mark.cluster
def test_a_node_without_mpi4py_is_named(tmp_path):
    """Rank 0 has nothing to complain of and would wait for the others in vain."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no such module')")
    # rank 1 as the first of a second node
    node = f"import os, sys; sys.path.insert(0, {str(tmp_path)!r}); os.environ['OMPI_COMM_WORLD_LOCAL_RANK'] = '0'"
    result = mpirun(1, *DOCTOR, ":", "-np", "1", sys.executable, *at_once(before=node), python=COLD)
    (line,) = our_lines(result)
    assert line.startswith("rank 1 on ")
    assert "mpi4py cannot be loaded (no such module)" in line


def preload(folder, code):
    """A library of C functions that stand before those of the system."""
    library = folder / "preloaded.so"
    source = f"#include <errno.h>\n#include <stdlib.h>\n#include <unistd.h>\n{code}"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=source, text=True, check=True)
    return str(library)


REFUSES = """
#include <sys/stat.h>
int flock(int file, int how) { errno = ENOLCK; return -1; }
int fsync(int file) {
    struct stat what;
    fstat(file, &what);
    errno = EINVAL;
    return S_ISDIR(what.st_mode) ? -1 : 0;
}
"""


@pytest.mark.cluster
def test_a_file_system_without_locks_that_forces_no_folder_to_disk_and_a_run_in_it(tmp_path):
    library = preload(tmp_path, REFUSES)
    result = alone(*DOCTOR, "--out", tmp_path / "runs", LD_PRELOAD=library)
    row = table(result, "output folder on")[0]
    assert row[1:5] == ["yes", "yes", "no (No locks available)", "no (Invalid argument)"]
    assert ENOUGH in result.stdout
    assert result.returncode == 0
    mine = Hold(tmp_path / "runs")
    result = alone(*DOCTOR, "--out", tmp_path / "runs", LD_PRELOAD=library, HDF5_USE_FILE_LOCKING="TRUE")
    mine.release()
    locks, held = changes(result)
    assert "export HDF5_USE_FILE_LOCKING=FALSE" in locks
    assert f"process {os.getpid()} on " in held
    assert "give each run a folder of its own" in held
    assert result.returncode == 1


@pytest.mark.cluster
def test_a_write_that_hangs(tmp_path):
    library = preload(tmp_path, "int fsync(int file) { for (;;) pause(); }")
    result = alone(*hurried("writing to", "--out", tmp_path / "runs", "--wait", "320"), LD_PRELOAD=library)
    (line,) = our_lines(result)
    assert f"writing to --out {tmp_path}/runs did not end within 2 s; " in line
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--wait", "0"), "--wait 0: must be more than 0 seconds"),
        (("--replicas", "2"), "--replicas 2 does not divide 1 rank; possible here: 1; "),
        (("--ouput", "x"), "unrecognized arguments: --ouput x"),
    ],
)
def test_a_wrong_command_line(arguments, line):
    result = alone(*DOCTOR, *arguments)
    (said,) = our_lines(result)
    assert said.startswith(line)
    assert (result.returncode, result.stdout) == (2, "")


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = alone(*DOCTOR, "--out", tmp_path / "file" / "runs")
    (line,) = changes(result)
    assert line.startswith(f"1. --out {tmp_path}/file/runs: cannot be written on ")
    assert "(Not a directory)" in line
    assert result.returncode == 1
