"""Ranks are waited for as long as the settings say, and no longer."""

import sys
import threading
import time

import pytest
from helpers.mpi import mpirun, our_lines
from helpers.trainer import TRAIN

from parle_hpc.cluster.diagnosis.probes import look

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SHORT = ("--replicas", 2, "--schedule.max_rounds", 1, "--algorithm.L", 2, "--data.samples", 200)
MORE = "see its output; ranks that come later than that need more --run.patience, in a script Topology.split(patience="


def test_a_rank_that_comes_late_is_waited_for_as_long_as_the_patience_says(tmp_path):
    """Longer than a run has at least."""
    result = mpirun(2, "late.py", 8, 2, *SHORT, "--out", tmp_path / "run", "--run.patience", 200)
    assert (result.returncode, our_lines(result)) == (0, []), result.stderr
    assert (tmp_path / "run" / "reference.pt").exists()


def test_and_no_longer(tmp_path):
    result = mpirun(2, "late.py", 100, 2, *SHORT, "--out", tmp_path / "run", "--run.patience", 3, timeout=90)
    (line,) = our_lines(result)
    assert line.startswith(
        "rank 0: the start of MPI and Horovod did not end within 3 s; another rank has not come to it"
    )
    assert MORE in line
    assert result.returncode == 1


def test_in_a_script_too():
    result = mpirun(2, "late_in_a_script.py", 100, 2.5, timeout=90)
    (line,) = our_lines(result)
    assert "did not end within 2.5 s" in line
    assert MORE in line
    assert result.returncode == 1


def test_a_fault_of_one_rank_alone_is_said(tmp_path):
    """Rank 0 has none to speak of, and would wait for the other."""
    out = ("--out", tmp_path / "run")
    result = mpirun(1, *TRAIN, *SHORT, *out, ":", "-np", "1", sys.executable, *TRAIN, "--typo", "1", timeout=100)
    (line,) = our_lines(result)
    assert "--typo" in line
    assert result.returncode == 2


def test_a_run_that_is_saved_says_so_although_a_rank_does_not_end(tmp_path):
    settings = ("--replicas", 2, "--schedule.max_rounds", 9, *SHORT[4:], "--out", tmp_path / "run")
    result = mpirun(2, "stays.py", *settings, timeout=200)
    assert result.returncode == 85, result.stderr
    # what follows is of mpirun's signal to the other
    line = our_lines(result)[0]
    assert line.startswith("rank 0: the end of MPI did not end within 1 s; saved after round ")
    assert line.endswith(" on SIGUSR1; the same command goes on")


def test_a_folder_has_as_long_to_show_itself_as_it_is_given(tmp_path):
    """As on a network file system, where it takes its time."""
    timer = threading.Timer(0.3, (tmp_path / "probe").mkdir)
    timer.start()
    assert look(tmp_path, tmp_path / "probe", None, 1, "host", 60.0).seen
    timer.join()
    started = time.monotonic()
    assert not look(tmp_path, tmp_path / "none", None, 1, "host", 0.2).seen
    assert time.monotonic() - started < 60
