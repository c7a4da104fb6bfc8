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
from helpers.mpi import ENVIRONMENT, mpirun, our_lines, passes
from helpers.trainer import TRAIN, events, weights

from parle_hpc import models
from parle_hpc.equations import eq_9


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A run of the main recipe on 2 x 2 ranks: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, passes(4, *TRAIN, "--out", folder, "--data.path", digits)


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


@pytest.mark.parametrize(
    "settings",
    [
        ["--algorithm.inside", "workers"],
        ["--algorithm.name", "entropy_sgd"],
        ["--algorithm.name", "elastic_sgd"],
        ["--algorithm.name", "sgd"],
    ],
)
def test_so_do_its_relatives(tmp_path, digits, settings):
    passes(4, *TRAIN, "--out", tmp_path / "run", "--data.path", digits, *settings)
    assert events(tmp_path / "run", "validate")[-1]["val_error"] <= 2.5


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
        # 2 (n - 1) / n * 4 N / m bytes: one reduction a round, and the start's in the first
        assert e["coupling_bytes_sent"] == 4 * 132_220 // 2 * (2 if t == 0 else 1)
        assert 0 <= e["coupling_wait_seconds"] <= e["coupling_seconds"]
    last = events(folder, "validate")[-1]
    assert set(last) >= {"val_loss", "train_loss", "spread", "seconds"}
    assert len(last["replica_error"]) == 2
    assert last["spread"] > 0
    assert len(events(folder, "start")) == len(events(folder, "end")) == 1


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
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"validation error {error:.2f} %" in printed.stdout


def test_its_end_sums_up_the_coupling(run):
    folder, _ = run
    (end,), rounds = events(folder, "end"), events(folder, "round")
    for name in ("coupling_seconds", "coupling_wait_seconds", "coupling_bytes_sent"):
        assert end[name] == pytest.approx(sum(e[name] for e in rounds), rel=1e-3)
    assert end["compute_seconds"] > end["coupling_seconds"] > 0


@pytest.mark.parametrize("algorithm", ["parle", "elastic_sgd"])
def test_a_trace_names_the_equations(tmp_path, digits, algorithm):
    settings = ["--schedule.max_rounds", 2, "--algorithm.L", 3, "--algorithm.name", algorithm, "--run.trace", "true"]
    passes(4, *TRAIN, "--out", tmp_path / "run", "--data.path", digits, *settings)
    files = {path.name for path in (tmp_path / "run" / "traces").iterdir()}
    assert files == {f"{rank}.json" for rank in range(4)}
    trace = json.loads((tmp_path / "run" / "traces" / "3.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    shared = {"eq_8d", "MPIReference.start", "MPIReference.collect", "Topology.average_gradients"}
    own = {"parle": {"eq_8a", "eq_8b", "eq_8c", "Gather.__call__", "Parle._couple"}, "elastic_sgd": {"eq_7a", "eq_7b"}}
    assert shared | own[algorithm] <= set(names)
    assert names.count("Parle._couple") == (algorithm == "parle")


def test_its_settings_make_the_same_run_again_bit_for_bit(run, tmp_path):
    folder, _ = run
    passes(4, *TRAIN, "--recipe", folder / "config.toml", "--out", tmp_path / "again")
    for a, b in zip(weights(folder).values(), weights(tmp_path / "again").values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", ["parle", "sgd", "elastic_sgd"])
def test_one_replica_of_any_number_of_ranks_is_the_same(tmp_path, digits, algorithm):
    """20 steps on 1 and on 4 ranks, float64, no dropout: equal without BatchNorm; with it, statistics are per rank."""

    def difference(norm):
        found = []
        for ranks in (1, 4):
            out = tmp_path / f"{norm}{ranks}"
            settings = ["--data.path", digits, "--model.dropout", 0, "--replicas", 1, "--schedule.lr", 0.01]
            settings += ["--algorithm.name", algorithm, "--algorithm.L", 10, "--run.seed", 3]
            passes(ranks, "twenty_steps.py", norm, out, *settings)
            found.append(np.load(out.with_suffix(".npy")))
        return np.abs(found[0] - found[1]).max()

    assert difference("identity") <= 1e-10
    assert algorithm != "parle" or difference("batch") > 1e-6


def test_a_plain_process_trains_and_makes_its_data(tmp_path):
    settings = ["--schedule.max_rounds", "2", "--algorithm.L", "3"]
    result = subprocess.run(
        [sys.executable, *TRAIN, *settings], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
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
    process = subprocess.Popen([sys.executable, *TRAIN, *settings], env=ENVIRONMENT, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    # Linux answers EIO once the other side is closed
    with contextlib.suppress(OSError):
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.wait(60) == 0
    assert b"3/3 [" in shown
    assert b"loss" in shown
    assert b"validation error of the reference" in shown


def test_horovodrun_starts_it(tmp_path, digits):
    horovodrun = f"{ENVIRONMENT['PATH'].split(':')[0]}/horovodrun"
    command = [horovodrun, "-np", "3", sys.executable, *TRAIN, "--schedule.max_rounds", "1", "--algorithm.L", "2"]
    command += ["--data.path", str(digits), "--out", str(tmp_path / "run"), "--data.batch_size", "66"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "3 replicas x 1 rank" in result.stdout


def torn(digits, folder):
    path = folder / "torn.h5"
    path.write_bytes(digits.read_bytes()[:300_000])
    return path


def small(folder):
    """A data set of images that are too small for LeNet."""
    path = folder / "small.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(name="small", classes=10)
        for part in ("train", "test"):
            file[f"{part}/images"] = np.zeros((200, 1, 8, 8), np.uint8)
            file[f"{part}/labels"] = np.zeros(200, np.int64)
    return path


@pytest.mark.parametrize(
    ("ranks", "settings", "words"),
    [
        (2, ["--recipe", "nope"], ["--recipe nope", "lenet_digits"]),
        (2, ["--data.batch_sise", "3"], ["--data.batch_sise", "data.batch_size"]),
        (4, ["--data.batch_size", "0"], ["--data.batch_size 0"]),
        (3, ["--replicas", "2"], ["--replicas 2 does not divide 3 ranks"]),
        (4, ["--data.batch_size", "65"], ["65 does not divide among the 2 ranks"]),
        (2, ["--algorithm.name", "sgd", "--replicas", "2"], ["sgd is data-parallel"]),
        (2, ["--algorithm.name", "elastic_sgd", "--algorithm.inside", "workers"], ["inside workers", "parle"]),
        (4, ["--data.batch_size", "2"], ["--data.batch_size 2", "BatchNorm", "at least 4"]),
        (2, ["--data.path", "{small}"], ["--model.name lenet", "1 x 8 x 8"]),
        (2, ["--data.path", "{tmp}/missing.h5"], ["missing.h5: no such data file"]),
        (2, ["--data.path", "{torn}"], ["torn.h5 is not a complete HDF5 file"]),
        (2, ["--out", "{torn}/run"], ["--out", "cannot be written"]),
        (2, ["--run.device", "cuda"], ["--run.device cuda"]),
    ],
)
def test_bad_input_gets_one_line_and_status_2(tmp_path, digits, ranks, settings, words):
    if "cuda" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so cuda is right")
    names = {"tmp": tmp_path, "torn": torn(digits, tmp_path), "small": small(tmp_path)}
    given = ["--data.path", str(digits), "--out", str(tmp_path / "run"), *(s.format(**names) for s in settings)]
    result = mpirun(ranks, *TRAIN, *given, timeout=60, cwd=tmp_path)
    lines = our_lines(result)
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_folder_that_holds_a_run_is_not_overwritten(run, digits):
    folder, _ = run
    before = (folder / "metrics.jsonl").read_bytes()
    result = mpirun(2, *TRAIN, "--out", folder, "--data.path", digits, "--resume", "never")
    assert (result.returncode, len(our_lines(result))) == (2, 1)
    assert "holds a run already" in our_lines(result)[0]
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("rate", "round"), [("1e6", 1), ("40", None)])
def test_a_loss_that_becomes_nan_ends_the_run_with_status_3(tmp_path, digits, rate, round):
    settings = ["--schedule.lr", rate, "--data.path", digits, "--out", tmp_path / "run", "--algorithm.L", 5]
    settings += ["--algorithm.gamma0", 1e-3] if round is None else []
    result = mpirun(2, *TRAIN, *settings, timeout=120)
    assert result.returncode == 3, result.stderr
    (line,) = our_lines(result)
    assert "NaN or infinite in round" in line
    assert round is None or f"in round {round}, step " in line
    assert not (tmp_path / "run" / "reference.pt").exists()
