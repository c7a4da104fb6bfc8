"""The program as its users start it."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import h5py
import numpy as np
import pytest
import torch
from helpers.mpi import ENVIRONMENT, mpirun, our_lines, pass_in_turn, passes
from helpers.replicas import ThreadComm
from helpers.trainer import TRAIN, events, weights, wrong

from parle_hpc import models
from parle_hpc.coupling.reference import MPIReference
from parle_hpc.equations import eq_9
from parle_hpc.training.trace import tracing

pytestmark = pytest.mark.timeout(900)

# a thread of torch that waits for another one spins, and both are slow where other work has the cores
ALONE = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}

RELATIVES = {
    "workers": ("--algorithm.inside", "workers"),
    "entropy_sgd": ("--algorithm.name", "entropy_sgd"),
    "elastic_sgd": ("--algorithm.name", "elastic_sgd"),
    "sgd": ("--algorithm.name", "sgd"),
    "diloco": ("--algorithm.name", "diloco"),
    "local_sgd": ("--algorithm.name", "local_sgd", "--algorithm.post_local_start", "1"),
    "sam": ("--algorithm.name", "sam"),
}
TRACED = ("parle", "elastic_sgd")
WRONG = {
    "recipe": (("--recipe", "nope"), ("--recipe nope", "lenet_digits")),
    "size": (("--data.batch_size", "0"), ("--data.batch_size 0",)),
    "share": (("--data.batch_size", "65"), ("65 does not divide among the 2 ranks",)),
    "data-parallel": (("--algorithm.name", "sgd", "--replicas", "2"), ("sgd is data-parallel",)),
    "workers": (("--algorithm.name", "elastic_sgd", "--algorithm.inside", "workers"), ("inside workers", "parle")),
    "BatchNorm": (("--data.batch_size", "2"), ("--data.batch_size 2", "BatchNorm", "at least 4")),
    "small": (
        ("--data.path", "{folder}/small.h5", "--data.name", "small"),
        ("--model.name lenet", "1 x 8 x 8", "take wrn"),
    ),
    "another": (
        ("--data.path", "{folder}/small.h5"),
        ("small.h5 holds small, not digits; give digits's file, or train with",),
    ),
    "torn": (("--data.path", "{folder}/torn.h5"), ("torn.h5 is not a complete HDF5 file",)),
    "out": (("--out", "{folder}/torn.h5/run"), ("--out", "cannot be written")),
    "cuda": (("--run.device", "cuda"), ("--run.device cuda",)),
    "never": (("--out", "{run}", "--resume", "never"), ("{run}: holds a run already",)),
}
TWENTY = [("identity", "parle"), ("identity", "sgd"), ("identity", "elastic_sgd"), ("batch", "parle")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A run of the main recipe on 2 x 2 ranks: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, passes(4, *TRAIN, "--out", folder, "--data.path", digits, timeout=600)


@pytest.fixture(scope="module")
def others(tmp_path_factory, digits, run):
    """One start of 4 ranks: a folder with what RELATIVES, TRACED and TWENTY leave, what each rank is told of WRONG."""
    folder = tmp_path_factory.mktemp("others")
    make_small(folder / "small.h5")
    (folder / "torn.h5").write_bytes(digits.read_bytes()[:300_000])
    short = ("--schedule.max_rounds", 2, "--algorithm.L", 3, "--run.trace", "true")
    runs = {
        name: ("--schedule.max_rounds", 4, "--data.batch_size", 32, *settings) for name, settings in RELATIVES.items()
    }
    runs |= {f"traced {name}": (*short, "--algorithm.name", name) for name in TRACED}
    given = ("--data.path", digits, "--out")
    trained = [(*TRAIN, *given, folder / name, *settings) for name, settings in runs.items()]
    filled = [[part.format(folder=folder, run=run[0]) for part in settings] for settings, _ in WRONG.values()]
    refused = wrong(2, *([*given, folder / "wrong", *settings] for settings in filled))
    *_, told = pass_in_turn(4, *twenty_steps(digits, folder), *trained, refused, timeout=600)
    return folder, dict(zip(WRONG, json.loads(told), strict=True))


def make_small(path):
    """A data set of images that are too small for LeNet."""
    with h5py.File(path, "w") as file:
        file.attrs.update(name="small", classes=10)
        for part in ("train", "test"):
            file[f"{part}/images"] = np.zeros((200, 1, 8, 8), np.uint8)
            file[f"{part}/labels"] = np.zeros(200, np.int64)


def twenty_steps(digits, folder):
    """Commands that leave the weights of TWENTY in a folder."""
    shared = ("--data.path", digits, "--model.dropout", 0, "--replicas", 1, "--schedule.lr", 0.01)
    shared += ("--algorithm.L", 10, "--run.seed", 3, "--data.batch_size", 16)
    return [
        ("twenty_steps.py", norm, folder / f"{norm} {name}", "--algorithm.name", name, *shared) for norm, name in TWENTY
    ]


@pytest.mark.cluster
def test_it_learns_the_digits(run):
    folder, printed = run
    last = events(folder, "validate")[-1]
    assert last["val_error"] <= 1.7
    assert last["train_error"] <= 0.5
    assert f"validation error of the reference  {last['val_error']:.2f} %" in printed
    for words in (
        "2 replicas x 2 ranks",
        "samples per second",
        "coupling  ",
        "in the paper: 0.52 %)",
        "MB sent by this rank",
        str(folder),
    ):
        assert words in printed
    log = (folder / "train.log").read_text().splitlines()
    assert sum("validation error" in line and "round" in line for line in log) == len(events(folder, "validate")) == 4


@pytest.mark.cluster
@pytest.mark.parametrize("name", RELATIVES)
def test_so_do_its_relatives(others, name):
    folder, _ = others
    assert events(folder / name, "validate")[-1]["val_error"] <= 10  # of guesses 90 are wrong


@pytest.mark.cluster
def test_its_metrics_are_what_they_say(run):
    folder, _ = run
    rounds, B = events(folder, "round"), 1437 // 64
    assert [e["round"] for e in rounds] == list(range(20))
    assert [e["step"] for e in rounds] == list(range(25, 501, 25))
    for t, e in enumerate(rounds):
        assert e["gamma"] == pytest.approx(eq_9(100.0, t, B, clip=1.0), rel=1e-5)
        assert e["rho"] == pytest.approx(eq_9(1.0, t, B, clip=0.1), rel=1e-5)
        assert e["passes"] == pytest.approx(e["step"] / B, rel=1e-5)
        assert e["samples_per_second"] > 0
        # (n - 1) 4 (2 N / m / n + 3) bytes: one reduction a round, and the start's in the first
        assert e["coupling_bytes_sent"] == 4 * (132_220 // 2 + 3) * (2 if t == 0 else 1)
        assert 0 <= e["coupling_wait_seconds"] <= e["coupling_seconds"]
    last = events(folder, "validate")[-1]
    assert set(last) >= {"val_loss", "train_loss", "spread", "seconds"}
    assert len(last["replica_error"]) == 2
    assert last["spread"] > 0
    assert len(events(folder, "start")) == len(events(folder, "end")) == 1


@pytest.mark.cluster
def test_its_reference_loads_without_this_package_and_gives_its_error(run, digits):
    folder, _ = run
    model = models.build("lenet")
    model.load_state_dict(weights(folder))
    model.eval()
    with h5py.File(digits) as file:
        images, labels = torch.from_numpy(file["test/images"][...]) / 255, file["test/labels"][...]
    with torch.no_grad():
        error = 100 * np.mean(model(images).argmax(1).numpy() != labels)
    assert error == pytest.approx(events(folder, "validate")[-1]["val_error"], abs=1e-4)
    printed = subprocess.run(
        [sys.executable, "-m", "parle_hpc.evaluate", folder],
        env=ALONE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"validation error {error:.2f} %" in printed.stdout


@pytest.mark.cluster
def test_its_end_sums_up_the_coupling(run):
    folder, _ = run
    (end,), rounds = events(folder, "end"), events(folder, "round")
    for name in ("coupling_seconds", "coupling_wait_seconds", "coupling_bytes_sent"):
        assert end[name] == pytest.approx(sum(e[name] for e in rounds), rel=1e-3)
    assert end["compute_seconds"] > end["coupling_seconds"] > 0


@pytest.mark.cluster
@pytest.mark.parametrize("algorithm", TRACED)
def test_a_trace_names_the_equations(others, algorithm):
    folder = others[0] / f"traced {algorithm}" / "traces"
    assert {path.name for path in folder.iterdir()} == {f"{rank}.json" for rank in range(4)}
    trace = json.loads((folder / "3.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    shared = {"MPIReference.start", "MPIReference.collect", "Topology.follow_backward", "Topology.average_gradients"}
    own = {"parle": {"eq_8a", "eq_8b", "eq_8c", "Gather.__call__", "Rounds._couple"}, "elastic_sgd": {"eq_7a", "eq_7b"}}
    assert shared | own[algorithm] <= set(names)
    assert names.count("Rounds._couple") == (algorithm == "parle")


def test_a_trace_names_the_mean(tmp_path):
    """(8d) is in a run's trace by chance alone: a thread does it, unless the sum comes at once as it does here."""
    xa = torch.ones(3)
    with tracing(tmp_path / "mean.json"):
        MPIReference(ThreadComm(ThreadComm.Shared(), 0, 1), xa).start(xa)
    trace = json.loads((tmp_path / "mean.json").read_text())
    assert "eq_8d" in {event.get("name") for event in trace["traceEvents"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits):
    """A folder with the weights of TWENTY of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    pass_in_turn(1, *twenty_steps(digits, folder), timeout=600, OMP_NUM_THREADS="1")
    return folder


@pytest.mark.cluster
@pytest.mark.parametrize(("norm", "algorithm"), TWENTY)
def test_one_replica_of_any_number_of_ranks_is_the_same(others, alone, norm, algorithm):
    """20 steps on 1 and on 4 ranks, float64, no dropout: equal without BatchNorm; with it, statistics are per rank."""
    one, four = (np.load(folder / f"{norm} {algorithm}.npy") for folder in (alone, others[0]))
    difference = np.abs(one - four).max()
    assert difference <= 1e-10 if norm == "identity" else difference > 1e-6


@pytest.mark.cluster
def test_a_plain_process_trains_and_makes_its_data(tmp_path):
    settings = ["--schedule.max_rounds", "2", "--algorithm.L", "3"]
    result = subprocess.run(
        [sys.executable, *TRAIN, *settings], cwd=tmp_path, env=ALONE, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("lenet_digits-")
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "reference.pt",
        "train.log",
    }
    assert (tmp_path / "data" / "digits.h5").exists()


@pytest.mark.cluster
def test_a_terminal_shows_progress(tmp_path, digits):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    settings = [
        "--schedule.max_rounds",
        "3",
        "--algorithm.L",
        "2",
        "--data.path",
        str(digits),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen([sys.executable, *TRAIN, *settings], env=ALONE, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    # Linux answers EIO once the other side is closed
    with contextlib.suppress(OSError):
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.wait(240) == 0
    assert b"3/3 [" in shown
    assert b"loss" in shown
    assert b"validation error of the reference" in shown


@pytest.mark.cluster
def test_horovodrun_starts_it(tmp_path, digits):
    horovodrun = f"{ENVIRONMENT['PATH'].split(':')[0]}/horovodrun"
    command = [horovodrun, "-np", "2", sys.executable, *TRAIN, "--schedule.max_rounds", "1", "--algorithm.L", "2"]
    command += ["--data.path", str(digits), "--out", str(tmp_path / "run")]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "2 replicas x 1 rank" in result.stdout


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("ranks", "settings", "words"),
    [
        (2, ["--data.batch_sise", "3"], ["--data.batch_sise", "data.batch_size"]),
        (3, ["--replicas", "2"], ["--replicas 2 does not divide 3 ranks"]),
        (2, ["--data.path", "missing.h5"], ["missing.h5: no such data file"]),
    ],
)
def test_bad_input_gets_one_line_and_status_2(tmp_path, digits, ranks, settings, words):
    given = ["--data.path", digits, "--out", tmp_path / "run", *settings]
    result = mpirun(ranks, *TRAIN, *given, cwd=tmp_path)
    (line,) = our_lines(result)
    assert all(word in line for word in words), line
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("name", WRONG)
def test_all_ranks_are_told_the_same_of_bad_input(run, others, name):
    """So each comes to its end, and rank 0 says the line."""
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so cuda is right")
    told = others[1][name]
    assert told == told[:1] * 4
    assert all(word.format(run=run[0]) in told[0] for word in WRONG[name][1]), told[0]
    assert "\n" not in told[0]


@pytest.mark.cluster
def test_a_folder_that_holds_a_run_is_not_overwritten(run, others):
    """`never` of WRONG was refused, and only the one run has written."""
    folder, _ = run
    assert [len(events(folder, name)) for name in ("start", "round", "end")] == [1, 20, 1]


@pytest.mark.cluster
@pytest.mark.parametrize(("rate", "round"), [("1e6", 1), ("40", None)])
def test_a_loss_that_becomes_nan_ends_the_run_with_status_3(tmp_path, digits, rate, round):
    settings = ["--schedule.lr", rate, "--data.path", digits, "--out", tmp_path / "run", "--algorithm.L", 5]
    settings += ["--algorithm.gamma0", 1e-3] if round is None else []
    result = mpirun(2, *TRAIN, *settings, timeout=240)
    assert result.returncode == 3, result.stderr
    (line,) = our_lines(result)
    assert "NaN or infinite in round" in line
    assert round is None or f"in round {round}, step " in line
    assert not (tmp_path / "run" / "reference.pt").exists()
