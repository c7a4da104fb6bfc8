"""What a Slurm job is called, as its variables say and Slurm confirms."""

import re
import subprocess

ASK = 10.0  # seconds for Slurm to answer
ARRAY = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
LAST_STEP = 1 << 31  # numbers from there on are those of a batch script, or of salloc's shell


def name_of_job(environment):
    """The job's id, or ARRAY_TASK, and the step's number where it is not the first; None outside a job.

    A job that is queued again keeps its ids, and counts its steps anew. Those of slurm/'s scripts, which say so by
    PARLE_HPC_ONE_RUN, go on with one run.
    """
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return None
    name = array_task(environment, job) or job
    step = "" if environment.get("PARLE_HPC_ONE_RUN") else environment.get("SLURM_STEP_ID", "")
    return f"{name}.{int(step)}" if step.isdigit() and 0 < int(step) < LAST_STEP else name


def array_task(environment, job):
    """ARRAY_TASK of an array's job, else None: sbatch hands a task's variables on to the jobs that it queues."""
    said = [environment.get(name, "") for name in ARRAY]
    if not all(number.isdigit() for number in said):
        return None
    try:
        asked = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=ASK)
    except (OSError, subprocess.TimeoutExpired):
        asked = None
    if asked is None or asked.returncode:
        # as in a container, where no Slurm can be asked
        return "_".join(said)
    # asked for the array's own number, that of one of its tasks too, it tells of all
    known = re.search(rf"^JobId={job} ArrayJobId=(\d+) ArrayTaskId=(\d+)\b", asked.stdout, re.MULTILINE)
    return "_".join(known.groups()) if known else None
