"""Every table and figure has its runs, the paper's or a laptop's, and one command goes from data to page."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import raw
from helpers.mpi import module

from parle_hpc import reproduce as program
from parle_hpc.paper import campaign
from parle_hpc.paper.experiments import EXPERIMENTS, SAMPLES, SIZES, Spec
from parle_hpc.settings import ROUNDS, load


def every_spec(size, seeds=2):
    return [spec for _, specs in EXPERIMENTS.values() for spec in specs(seeds, size, None)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_runs_are_valid_and_have_names_of_their_own(name, size):
    specs = EXPERIMENTS[name][1](3, size, None)
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names) > 0
    for spec in specs:
        settings = load(spec.arguments)
        assert (settings.recipe, settings.algorithm.name) == (spec.recipe, spec.algorithm)
        assert spec.ranks % settings.replicas == 0
        assert settings.data.batch_size % (spec.ranks // settings.replicas) == 0
        assert settings.data.batch_size - 128 in range(spec.ranks)
        batches, text = spec.cost
        assert batches > 0
        assert text


def test_one_name_is_one_run():
    for size in SIZES:
        made = {}
        for spec in every_spec(size):
            assert made.setdefault(spec.name, spec.arguments) == spec.arguments, spec.name


def test_at_the_papers_size_a_run_is_its_recipe():
    for spec in every_spec("paper"):
        mine, recipe = load(spec.arguments), spec.settings
        assert mine.schedule == recipe.schedule
        assert mine.model == recipe.model
        assert mine.data.model_copy(update={"batch_size": 128}) == recipe.data
    table = {spec.name: spec for spec in EXPERIMENTS["table1"][1](1, "paper", None)}
    assert table["lenet_mnist-sgd-seed0"].steps == 100 * (60_000 // 129)
    assert table["lenet_mnist-parle-n3-seed0"].steps == 3 * 25 * 468
    assert "4.24 min" in table["lenet_mnist-parle-n3-seed0"].cost[1]


@pytest.mark.parametrize(("name", "rounds"), [("table1", None), ("table1", 40), ("table2", 40)])
def test_fewer_rounds_are_equally_many_for_all_with_drops_at_the_papers_fractions(name, rounds):
    for spec in EXPERIMENTS[name][1](1, "laptop", rounds):
        small, full = load(spec.arguments).schedule, spec.settings.schedule
        data = load(spec.arguments).data
        B = int(data.fraction * (data.samples or SAMPLES[data.name])) // data.batch_size
        steps = small.epochs * B * (25 if spec.algorithm in ROUNDS else 1)
        assert small.max_rounds == (rounds or spec.laptop.rounds)
        assert 0 <= steps - 25 * small.max_rounds < 0.002 * steps
        fractions = [drop / full.epochs for drop in full.drops]
        assert [drop / small.epochs for drop in small.drops] == pytest.approx(fractions, rel=2e-3)


def test_fewer_images_leave_the_schedule_as_it_is_and_all_get_equally_many_mini_batches():
    for spec in EXPERIMENTS["table2"][1](1, "laptop", None):
        settings = load(spec.arguments)
        assert settings.schedule == spec.settings.schedule.model_copy(update={"lr": 0.1})
        assert settings.data.samples == 10_000
        # 8 epochs of 25 passes, or 200 of one, over 78, 39 or 19 mini-batches
        assert spec.steps == 200 * (int(10_000 * settings.data.fraction) // 128)


def test_it_says_what_runs_in_parallel_as_remark_4_asks():
    for size, ranks in (("paper", 3), ("laptop", 2)):
        specs = {spec.name: spec for spec in EXPERIMENTS["fig2"][1](1, size, None)}
        assert specs["lenet_mnist-sgd-seed0"].ranks == specs["lenet_mnist-entropy_sgd-seed0"].ranks == ranks
        assert specs["lenet_mnist-parle-n3-seed0"].ranks == 3
        assert specs["lenet_mnist-parle-n6-seed0"].ranks == 6


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with an MNIST of 300 images, which stands for the whole."""
    monkeypatch.setitem(SAMPLES, "mnist", 300)
    folder = tmp_path / "data"
    folder.mkdir()
    with h5py.File(folder / "mnist.h5", "w") as file:
        file.attrs.update(name="mnist", classes=10)
        for part in ("train", "test"):
            file[f"{part}/images"] = raw.images(300, 0, 1, 28)
            file[f"{part}/labels"] = np.arange(300) % 10
    return folder


@pytest.fixture
def reproduce(monkeypatch, capfd):
    """A function that runs the command in this process: its status, and what it and the runs wrote."""

    def left(message, status):
        print(message, file=sys.stderr)
        raise SystemExit(status)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
        status = 0
        try:
            program.main()
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    # it ends the process
    monkeypatch.setattr(program, "leave", left)
    return call


@pytest.mark.cluster
def test_from_data_to_page_and_on_after_an_interruption(data, tmp_path, reproduce, monkeypatch):
    given = ["table1", "--size", "laptop", "--rounds", 1, "--seeds", 1, "--only=-sgd"]
    given += ["--data", data, "--runs", tmp_path / "runs", "--out", tmp_path / "page"]
    status, printed, said = reproduce(*given)
    assert status == 0, said
    lines = printed.splitlines()
    assert lines[0].split()[:2] == ["run", "ranks"]
    assert sum(line.endswith("to do") for line in lines) == 1
    assert "1 of 1 runs to do, 25 mini-batches of all replicas" in lines
    assert "2 ranks" in printed
    # of the four data sets one is there
    for missing in ("cifar10.h5", "cifar100.h5", "svhn.h5"):
        assert f"left out: what needs {data / missing}" in said
    page = (tmp_path / "page" / "index.html").read_text()
    assert "here: LeNet on MNIST" in page
    assert page.count("data:image/png") == 1
    # a finished run is left alone
    folder = tmp_path / "runs" / "laptop-1" / "lenet_mnist-sgd-seed0"
    before = (folder / "reference.pt").stat().st_mtime_ns
    assert reproduce(*given)[0] == 0
    assert (folder / "reference.pt").stat().st_mtime_ns == before
    # an interrupted one goes on from its last checkpoint
    (folder / "reference.pt").unlink()
    status, printed, said = reproduce(*given)
    assert status == 0, said
    assert (folder / "reference.pt").exists()
    assert "goes on after round 1/1" in printed
    # a folder that holds another run is not taken for this one
    settings = folder / "config.toml"
    settings.write_text(settings.read_text().replace("dropout = 0.25", "dropout = 0.5"))
    status, _, said = reproduce(*given)
    assert status == 2
    assert "holds a run with other settings" in said
    # a run that fails ends it, and is named
    shutil.rmtree(folder)
    monkeypatch.setattr(campaign, "launcher", lambda *_: ["sh", "-c", "exit 2"])
    status, _, said = reproduce(*given)
    assert status == 2
    assert "lenet_mnist-sgd-seed0 ended with status 2" in said


def test_without_data_it_ends_with_one_line(tmp_path):
    result = module("parle_hpc.reproduce", "fig2", "--data", tmp_path, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "no data set of this experiment" in line
    assert not list(tmp_path.iterdir())


def test_a_mistake_gets_one_line(tmp_path, reproduce, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["table3"], "table3"),
        (["table1", "--seeds", "0"], "--seeds 0: must be 1 to 1,000"),
        (["table1", "--only", "adam"], "--only adam: no run of table1"),
    ):
        status, printed, said = reproduce(*arguments)
        assert (status, printed) == (2, "")
        (line,) = said.splitlines()
        assert words in line
        assert not list(tmp_path.iterdir())


def test_a_report_that_could_not_be_written_is_refused_before_hours_of_runs(data, tmp_path, reproduce):
    (tmp_path / "file").touch()
    for what in ([], ["--sbatch"]):
        status, printed, said = reproduce("fig2", "--data", data, "--out", tmp_path / "file" / "page", *what)
        assert (status, printed, len(said.splitlines())) == (2, "", 1)
        assert "cannot be written" in said


def test_a_dry_run_prints_commands_that_the_program_takes(tmp_path, reproduce, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = reproduce("table2", "--dry-run", "--seeds", "1")
    assert status == 0
    commands = [shlex.split(line) for line in printed.splitlines()]
    assert len(commands) == 9
    for command in commands:
        settings = load(command[command.index("parle_hpc.train") + 1 :])
        assert settings.out.startswith("runs/laptop/allcnn_cifar10")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [{}, {"SLURM_JOB_ID": "1"}])
def test_without_a_launcher_commands_are_printed_and_none_is_started(inside, data, tmp_path, reproduce, monkeypatch):
    """A laptop without MPI; a shell with a job's variables, in a container without Slurm."""
    monkeypatch.setattr(campaign.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    launcher = "srun" if inside else "mpirun"
    status, printed, said = reproduce("fig2", "--seeds", 1, "--dry-run")
    assert (status, said) == (0, "")
    assert all(line.split()[0] == launcher for line in printed.splitlines())
    runs = ["--only=-sgd", "--data", data, "--runs", tmp_path / "runs", "--out", tmp_path / "page"]
    status, _, said = reproduce("fig2", "--seeds", 1, *runs)
    assert status == 2
    assert said.splitlines()[-1].startswith(f"{launcher} is not on PATH; load the MPI module")


STAND_IN = 'train() { printf "%s\\n" "$PARLE_HPC_ROOT" "$PARLE_HPC_DATA" "$@"; }'


def test_batch_scripts_start_the_same_runs(tmp_path):
    specs = EXPERIMENTS["table2"][1](3, "paper", None)
    folder = campaign.write_scripts(specs, "runs", "data", tmp_path)
    scripts = sorted(folder.iterdir())
    assert len(scripts) == 9
    text = (folder / "allcnn_cifar10_split6-parle-n6.sbatch").read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=3\n#SBATCH --gpus-per-node=3\n" in text
    assert "#SBATCH --array=0,1,2\n" in text
    # common.sh's train, as it would call the trainer
    started = text.replace('source "$PARLE_HPC_ROOT/slurm/common.sh"', STAND_IN)
    shown = subprocess.run(["bash"], input=started, env={"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True)
    root, data, recipe, dataset, *given = shown.stdout.splitlines()
    assert (Path(root) / "slurm" / "common.sh").exists()
    assert (data, dataset) == ("data", "cifar10")
    settings = load(["--recipe", recipe, "--run.seed", "2", *given])
    assert settings.out == "runs/paper/allcnn_cifar10_split6-parle-n6-seed2"
    assert (settings.run.seed, settings.replicas, settings.data.fraction) == (2, 6, 0.25)


def test_inside_an_allocation_it_takes_srun(monkeypatch):
    """In a shell that is a step too, where another step would wait for the cores of this one."""
    allocation = campaign.launcher(3, {"SLURM_JOB_ID": "1"})
    assert allocation[:3] == ["srun", "--mpi=pmix", "--export=ALL"]
    assert "--overlap" not in allocation
    assert "--overlap" in campaign.launcher(3, {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"})
    assert campaign.launcher(3, {})[1:] == ["-np", "3"]


def test_a_spec_names_what_is_special_about_it():
    spec = Spec("lenet_mnist", "parle", 3, 1, "laptop", extra=("--algorithm.rho0", "10"), suffix="-rho0-10")
    assert spec.name == "lenet_mnist-parle-n3-rho0-10-seed1"
    assert load(spec.arguments).algorithm.rho0 == 10
    assert json.dumps(spec.steps) == "7500"
