"""The files in examples/: short, started as they say, and bit for bit themselves after an end in mid-run."""

import ast
import importlib.util
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.mpi import module, mpirun, pass_in_turn
from helpers.trainer import TRAIN, equal, events
from sklearn.datasets import load_digits

from parle_hpc.errors import SAVED
from parle_hpc.settings import load

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
SHORT = ("--algorithm.L", 5, "--schedule.max_rounds", 16, "--run.checkpoint_every", 4, "--data.batch_size", 32)
# what ends each one before its tenth round, when a checkpoint is complete
TASKS = {"images_h5": "SIGKILL", "segmentation": "SIGTERM", "transformer": "SIGKILL", "huggingface_style": "SIGTERM"}
LOOPS = {"own_loop": "SIGKILL", "fabric_loop": "SIGTERM"}
NO_LIGHTNING = "lightning is not installed, which fabric_loop.py is about: pip install lightning"

pytestmark = pytest.mark.timeout(900)


def installed(name):
    return name != "fabric_loop" or importlib.util.find_spec("lightning") is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_short_and_says_how_it_is_started(file, monkeypatch):
    source = file.read_text()
    assert len(source.splitlines()) < 80
    commands = [
        line.partition("#")[0] for line in ast.get_docstring(ast.parse(source)).splitlines() if "mpirun" in line
    ]
    assert commands
    assert all(file.stem in command for command in commands)
    monkeypatch.chdir(EXAMPLES)
    for command in commands:
        _, trainer, settings = command.partition("-m parle_hpc.train ")
        if trainer:
            load(shlex.split(settings))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """scikit-learn's digits as somebody may have them: uint8, N x H x W x C."""
    found, labels = load_digits(return_X_y=True)
    path = tmp_path_factory.mktemp("images") / "images.h5"
    with h5py.File(path, "w") as file:
        file["images"] = (15.9 * found.reshape(-1, 8, 8, 1)).astype(np.uint8)
        file["labels"] = labels
    return path


def command_of(name, out, images):
    """What starts an example, with checkpoints that come soon."""
    file = EXAMPLES / f"{name}.py"
    if name in LOOPS:
        return [file, out]
    if name == "transformer":
        return [*TRAIN, "--recipe", EXAMPLES / "transformer.toml", *SHORT, "--out", out]
    own = ["--task.path", images, "--data.workers", 1] if name == "images_h5" else []
    return [*TRAIN, "--task.file", file, *own, *SHORT, "--out", out]


def interrupted_and_not(ranks, signals, folder, images):
    """(Status of the job that was ended, what the same command then printed) by name.

    The runs, started once more when they have ended, and those that nobody ended are in `folder`/NAME/parts and whole.
    """
    commands = {name: command_of(name, folder / name / "parts", images) for name in signals}
    ended = {n: mpirun(ranks, "interrupted.py", 9, signals[n], *map(str, c)).returncode for n, c in commands.items()}
    whole = [command_of(name, folder / name / "whole", images) for name in signals]
    printed = pass_in_turn(ranks, *whole, *commands.values(), *commands.values(), timeout=600)
    return {name: (ended[name], printed[len(whole) + i]) for i, name in enumerate(signals)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def tasks(folder, images):
    return interrupted_and_not(2, TASKS, folder, images)


@pytest.fixture(scope="module")
def loops(folder):
    return interrupted_and_not(4, {name: LOOPS[name] for name in LOOPS if installed(name)}, folder, None)


@pytest.mark.cluster
@pytest.mark.parametrize("name", [*TASKS, *LOOPS])
def test_ended_in_mid_run_the_same_command_goes_on_bit_for_bit(name, folder, request):
    if not installed(name):
        pytest.skip(NO_LIGHTNING)
    status, printed = request.getfixturevalue("loops" if name in LOOPS else "tasks")[name]
    if {**TASKS, **LOOPS}[name] == "SIGTERM":
        # asked for in the tenth round, and agreed on in the next one
        assert (status, "goes on after round 11/" in printed) == (SAVED, True)
    else:
        assert status not in (0, SAVED)
        assert "goes on after round" in printed
    assert equal(folder / name / "whole", folder / name / "parts")
    assert last_validation(folder / name / "whole") == last_validation(folder / name / "parts")


def last_validation(run):
    return {key: value for key, value in events(run, "validate")[-1].items() if key != "seconds"}


@pytest.mark.cluster
@pytest.mark.parametrize(("name", "score", "unit"), [("images_h5", "error", " %"), ("segmentation", "iou", "")])
def test_evaluate_finds_the_last_validation_again(tasks, folder, name, score, unit):
    last = last_validation(folder / name / "whole")
    evaluated = module("parle_hpc.evaluate", folder / name / "whole", cwd=folder)
    found = last[f"val_{score}"]
    value = f"{found:.2f}{unit}" if unit else f"{found:.4g}"
    assert f"validation {score} {value}, loss {last['val_loss']:.4g}" in evaluated.stdout, evaluated.stderr


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("images_h5", lambda last: last["val_error"] < 60),
        ("segmentation", lambda last: last["val_iou"] > 0.5),
        ("transformer", lambda last: last["val_error"] < 60),
        ("huggingface_style", lambda last: last["val_loss"] < 0.69),
    ],
)
def test_it_learns(tasks, folder, name, learned):
    last = last_validation(folder / name / "whole")
    assert learned(last), last


@pytest.mark.cluster
def test_the_loop_of_ones_own_learns(loops, folder):
    assert last_validation(folder / "own_loop" / "whole")["val_error"] < 10
