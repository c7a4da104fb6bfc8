"""A rank that begins with torch loaded is what a Python would be that was started in its place."""

import json
import os
import signal
import subprocess

import pytest
from helpers.moments import until
from helpers.mpi import COLD, ENVIRONMENT, warm

pytestmark = pytest.mark.cluster

TELLS = """
import json, os, random, sys
loaded = [name for name in sys.modules if name.partition(".")[0] in ("parle_hpc", "helpers", "horovod")]
import torch
told = {"argv": sys.argv, "folder": os.getcwd(), "mine": os.environ.get("MINE"), "path": sys.path[:2], "loaded": loaded}
told |= {"cores": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "input": sys.stdin.read()}
told |= {"tasks": len(os.listdir("/proc/self/task"))}
print(json.dumps({**told, "random": random.random(), "open": len(os.listdir("/proc/self/fd"))}))
"""


def told(python, folder, **environment):
    command = [*python, "-c", TELLS, "one", "two"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "MINE": "here", **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, input="given", cwd=folder, env=environment, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "1"}])
def test_it_has_what_it_was_started_with(environment, tmp_path):
    cold, first, second = (told(python, tmp_path, **environment) for python in (COLD, warm(), warm()))
    draws = {one.pop("random") for one in (cold, first, second)}
    assert len(draws) == 3
    # of a thread that a library has started on loading, a fork is rid
    tasks = [one.pop("tasks") for one in (cold, first, second)]
    assert tasks[1:] == [1, 1]
    assert cold == first == second
    assert (cold["argv"], cold["input"], cold["loaded"]) == (["-c", "one", "two"], "given", [])


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("raise KeyError('here')", 1, "KeyError: 'here'"),
        ("import atexit; atexit.register(print, 'over')", 0, "over"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
    ],
)
def test_it_ends_as_the_rank_ends(body, status, line):
    ended = subprocess.run([*warm(), "-c", body], capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert line in ended.stdout + ended.stderr


def test_a_rank_goes_with_what_stands_for_it():
    body = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with subprocess.Popen([*warm(), "-c", body], stdout=subprocess.PIPE, text=True) as stands:
        rank = int(stands.stdout.readline())
        assert rank != stands.pid
        stands.kill()
    until(lambda: not os.path.exists(f"/proc/{rank}"))


@pytest.mark.parametrize("kind", ["cold", "warm"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_what_mpirun_signals_the_rank_hears(kind, number):
    body = f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(number)}}}); "
    body += "print(os.getpgid(0), flush=True); "
    body += f"signal.sigwait({{{int(number)}}}); print('heard', flush=True); sys.exit(7)"
    command = ["mpirun", "-np", "1", *(warm() if kind == "warm" else COLD), "-c", body]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as job:
        try:
            group = int(job.stdout.readline())
            assert group != os.getpgid(0)
            if number == signal.SIGTERM:
                # as mpirun sends it, which would kill the rank a second later
                os.killpg(group, number)
            else:
                job.send_signal(number)
            told, _ = job.communicate(timeout=60)
        finally:
            # and its rank with it
            job.terminate()
    assert (told, job.returncode) == ("heard\n", 7)
