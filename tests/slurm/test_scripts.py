"""What the batch scripts say, without a Slurm: that they are alike, and fit the recipes that they run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.mpi import ENVIRONMENT

from parle_hpc.recipes import recipe_names
from parle_hpc.settings import default_replicas, load

SLURM = Path(__file__).resolve().parent.parent.parent / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
SHAPE = ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time")


def options(script):
    """{name: value} of the #SBATCH lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script.read_text(), re.MULTILINE))


def test_there_is_one_for_each_recipe():
    assert [script.stem for script in SCRIPTS] == recipe_names()


def test_they_are_alike_but_for_what_differs():
    """Head and last line are a script's own, and so are the values of the shape."""
    texts = set()
    for script in SCRIPTS:
        lines = [line for line in script.read_text().splitlines() if "gpus-per-node" not in line]
        lines = [line for line in lines if line != "# a task for each GPU"]
        text = "\n".join(lines[6:-1]).replace(script.stem, "NAME")
        texts.add(re.sub(rf"^#SBATCH --({'|'.join(SHAPE)})=\S+", r"#SBATCH --\1", text, flags=re.MULTILINE))
    assert len(texts) == 1


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
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


def test_shellcheck_finds_nothing():
    files = [*SCRIPTS, *sorted(SLURM.glob("*.sh"))]
    program = shutil.which("shellcheck", path=ENVIRONMENT["PATH"])
    command = [program, "--external-sources", f"--source-path={SLURM.parent}", *files]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
