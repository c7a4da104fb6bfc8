"""What a run is called in a Slurm job: by what Slurm confirms of its variables."""

import os

import pytest

from parle_hpc.cluster import slurm_job
from parle_hpc.training.folder import run_name

JOB = {"SLURM_JOB_ID": "77"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
# asked for the number of an array, which is one task's too, it tells of all tasks
KNOWN = """JobId=78 ArrayJobId=77 ArrayTaskId=1 JobName=x
   UserId=me(1) GroupId=me(1)

JobId=77 ArrayJobId=77 ArrayTaskId=2 JobName=x
"""


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Writes an scontrol that prints a text, and ends so."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def write(text, end="exit 0"):
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\ncat <<E\n{text}E\n{end}\n")
        (tmp_path / "scontrol").chmod(0o755)

    return write


def test_without_a_job_it_is_the_time():
    assert run_name({}).count("-") == 1
    # left over in a shell, in which no job is
    assert run_name(ARRAY).count("-") == 1


@pytest.mark.parametrize(
    ("step", "name"), [("0", "77"), ("3", "77.3"), ("4294967290", "77"), ("4294967291", "77"), ("", "77")]
)
def test_a_step_after_the_first_has_a_name_of_its_own(step, name):
    """The numbers of a batch script and of salloc's shell are none."""
    assert run_name({**JOB, "SLURM_STEP_ID": step}) == name
    # of a script whose later steps go on with what the first one began
    assert run_name({**JOB, "SLURM_STEP_ID": step, "PARLE_HPC_ONE_RUN": "1"}) == "77"


def test_an_array_is_what_slurm_says(scontrol):
    scontrol(KNOWN)
    assert run_name({**JOB, **ARRAY}) == "77_2"
    assert run_name({**JOB, **ARRAY, "SLURM_STEP_ID": "1"}) == "77_2.1"
    # as of a job that a task of another array has queued
    scontrol("JobId=77 JobName=x\n   UserId=me(1)\n")
    assert run_name({**JOB, **ARRAY}) == "77"


def test_where_slurm_does_not_answer_a_pair_is_believed(scontrol, monkeypatch):
    scontrol("", "exit 1")
    assert run_name({**JOB, **ARRAY}) == "41_3"
    scontrol("", "exec sleep 60")
    monkeypatch.setattr(slurm_job, "ASK", 0.1)
    assert run_name({**JOB, **ARRAY}) == "41_3"
    monkeypatch.setenv("PATH", "/nowhere")
    assert run_name({**JOB, **ARRAY}) == "41_3"


@pytest.mark.parametrize("name", ["JOB", "TASK"])
def test_half_a_pair_is_none(name):
    half = {key: value for key, value in ARRAY.items() if name in key.split("_")[2]}
    assert len(half) == 1
    assert run_name({**JOB, **half}) == "77"
