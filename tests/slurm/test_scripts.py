"""What the batch scripts say, without a Slurm: that they are alike, and fit the recipes that they run."""

import os
import re
import shutil
import subprocess

import pytest
from helpers.common_sh import SLURM, bash
from helpers.mpi import ENVIRONMENT

from parle_hpc.recipes import recipe_names
from parle_hpc.settings import default_replicas, load

SCRIPTS = sorted(SLURM.glob("*.sbatch"))
OF_RECIPES = [script for script in SCRIPTS if script.stem not in ("own", "replica")]
SEEDS = "# the seeds, each a job of its own with a folder of its own\n##SBATCH --array=0-2\n"
SHAPE = ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time")


def options(script):
    """{name: value} of the #SBATCH lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script.read_text(), re.MULTILINE))


def test_there_is_one_for_each_recipe():
    assert [script.stem for script in OF_RECIPES] == recipe_names()


def test_they_are_alike_but_for_what_differs():
    """Head and last line are a script's own, and so are the values of the shape."""
    texts = set()
    for script in SCRIPTS:
        lines = [line for line in script.read_text().splitlines() if "gpus-per-node" not in line]
        lines = [line for line in lines if line != "# a task for each GPU"]
        text = "\n".join(lines[lines.index("") : -1]).replace(f"job-name={script.stem}", "job-name=NAME")
        # of replicas each is one of the array, which is given to sbatch
        text = text.replace(SEEDS, "")
        texts.add(re.sub(rf"^#SBATCH --({'|'.join(SHAPE)})=\S+", r"#SBATCH --\1", text, flags=re.MULTILINE))
    assert len(texts) == 1


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("script", OF_RECIPES, ids=lambda script: script.stem)
def test_it_fits_its_recipe(script, with_example):
    """Also with the setting that its head gives as an example."""
    example = re.search(r"# e\.g\. (.*)", script.read_text())[1].split() if with_example else []
    last = script.read_text().splitlines()[-1]
    settings = load(["--recipe", script.stem, *example])
    assert last == f'train {script.stem} {settings.data.name} "$@"'
    shape = options(script)
    assert shape["job-name"] == script.stem
    assert shape.get("gpus-per-node", shape["ntasks-per-node"]) == shape["ntasks-per-node"]
    ranks = int(shape["nodes"]) * int(shape["ntasks-per-node"])
    replicas = settings.replicas or default_replicas(settings.algorithm.name, ranks)
    assert replicas > 1
    assert ranks % replicas == 0
    assert settings.data.batch_size % (ranks // replicas) == 0


def left_after(command, folder, **environment):
    """The environment after a function of common.sh, which must end well, and what it said; `scontrol` prints so."""
    (folder / "scontrol").write_text(f"#!/bin/sh\necho '{environment.pop('scontrol', '')}'\n")
    (folder / "scontrol").chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = bash(f"{command}; env", PATH=path, **environment)
    assert done.returncode == 0, done.stderr
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines()), done.stderr


def test_what_is_the_users_or_the_jobs_is_kept(tmp_path):
    kept = {"SLURM_CPU_BIND": "cores", "SLURM_MEM_BIND": "local", "SLURM_MEM_PER_NODE": "100", "SLURM_JOB_ID": "44"}
    kept |= {"PMIX_MCA_gds": "hash", "OMPI_MCA_btl": "tcp,self", "PMI_MMAP_SYNC_WAIT_TIME": "300"}
    kept |= {"HOROVOD_CYCLE_TIME": "5", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
    told = "JobId=44 ArrayJobId=41 ArrayTaskId=3 JobName=x"
    left, said = left_after("forget_others", tmp_path, scontrol=told, **kept)
    assert {name: left.get(name) for name in kept} == kept
    assert said == ""


def test_what_is_of_another_job_is_not(tmp_path):
    others = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x3", "SLURM_CPU_BIND_LIST": "0x3", "SLURM_MEM_BIND": "map_mem:1"}
    others |= {"SLURM_MEM_PER_NODE": "100", "SLURM_MEM_PER_GPU": "1", "OMPI_MCA_ess_base_vpid": "1", "PMIX_RANK": "1"}
    others |= {"OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "RANK": "1", "HOROVOD_RANK": "1", "SLURM_STEP_ID": "7"}
    others |= {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "9"}
    told = "JobId=44 JobName=x"
    left, _ = left_after("forget_others", tmp_path, scontrol=told, SLURM_JOB_ID="44", **others)
    assert not others.keys() & left.keys()
    assert left["SLURM_EXPORT_ENV"] == "ALL"


def test_packages_of_another_python_are_left_out(tmp_path):
    (tmp_path / "lib" / "python3.11").mkdir(parents=True)
    mine = "/a/clone:/x/lib/python3.11/site-packages"
    given = {"PYTHONPATH": f"/opt/python3.6/site-packages:{mine}:/y/lib/python3.9", "PYTHONHOME": "/opt"}
    left, said = left_after("forget_other_pythons", tmp_path, PARLE_HPC_VENV=str(tmp_path), **given)
    assert left["PYTHONPATH"] == mine
    assert "PYTHONHOME" not in left
    assert "PYTHONPATH leads to /opt/python3.6/site-packages, which is not of python3.11: left out" in said


RUN = 'run_job() { echo "$@"; }; forget_others() { :; }; '
TASK = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
USAGE = "sbatch --array=0-7 slurm/replica.sbatch RECIPE [SETTING ...]"


def test_the_replicas_of_an_array_share_a_folder_and_a_seed(tmp_path):
    """The array's, or one that is given; what is a task's own is its number."""
    (tmp_path / "mine.toml").write_text('[data]\nname = "cells"\n[model]\nname = "lenet"\n')
    recipes = ["lenet_mnist --run.seed 7", f"{tmp_path}/mine.toml"]
    told = [bash(f"{RUN} train_member {recipe}", **TASK).stdout.strip() for recipe in recipes]
    coupled = "--replicas 1 --coupling.via mailbox --coupling.folder"
    assert told == [
        f"lenet_mnist mnist {coupled} runs/lenet_mnist-mailbox-41 --coupling.member 3 --run.seed 7",
        f"{tmp_path}/mine.toml cells {coupled} runs/mine-mailbox-41 --coupling.member 3",
    ]
    added = bash(f"{RUN} train_member lenet_mnist", **TASK, PARLE_HPC_MAILBOX="runs/x").stdout
    assert added == f"lenet_mnist mnist {coupled} runs/x --coupling.member 3\n"


@pytest.mark.parametrize(
    ("recipe", "job", "line"),
    [
        ("lenet_mnist", {}, "this job is no task of an array"),
        ("", TASK, "no recipe was named"),
        ("lenet", TASK, "no recipe lenet"),
    ],
)
def test_a_replica_that_is_no_task_of_an_array_or_of_no_recipe_gets_one_line(recipe, job, line):
    done = bash(f"{RUN} train_member {recipe}", **job)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"parle_hpc: {line}; {USAGE}\n")


def test_shellcheck_finds_nothing():
    files = [*SCRIPTS, *sorted(SLURM.glob("*.sh"))]
    program = shutil.which("shellcheck", path=ENVIRONMENT["PATH"])
    command = [program, "--external-sources", f"--source-path={SLURM.parent}", *files]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
