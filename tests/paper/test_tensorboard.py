"""TensorBoard reads from the event files what metrics.jsonl says, of runs that are over and of those that go on."""

import json
import os
import sys

import numpy as np
import pytest
from helpers.mpi import module
from helpers.records import write_run

from parle_hpc import report
from parle_hpc.errors import BadInput
from parle_hpc.paper import tensorboard

AXES = {"event", "seconds", "round", "step", "passes"}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "one", [3.25, 2, 1.123456], "--recipe", "lenet_digits")


@pytest.fixture
def shown():
    """{(name, step): (value, seconds since 1970)} of an output folder, as TensorBoard reads it."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )

    def read(folder):
        found = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0}).Reload()
        told = [(name, event) for name in found.Tags()["scalars"] for event in found.Scalars(name)]
        values = {(name, event.step): (event.value, event.wall_time) for name, event in told}
        assert len(values) == len(told), "something is there twice"
        return values

    return read


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def said(run):
    """{(name, step): value} of metrics.jsonl, numbers of validate and round alone."""
    values = {}
    for event in lines(run):
        for key, value in event.items():
            if event["event"] in ("validate", "round") and key not in AXES:
                several = {f"/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {"": value}
                values.update({(f"{event['event']}/{key}{i}", event["step"]): v for i, v in several.items()})
    return values


def test_values_steps_and_times_are_those_of_the_metrics(run, tmp_path, shown):
    result = module("parle_hpc.report", run, "--tensorboard", tmp_path / "out")
    assert (result.returncode, result.stdout) == (0, f"written {tmp_path / 'out'}\n"), result.stderr
    assert os.listdir(tmp_path / "out") == ["one"]
    found, wanted = shown(tmp_path / "out" / "one"), said(run)
    assert {key: value for key, (value, _) in found.items()} == {k: float(np.float32(v)) for k, v in wanted.items()}
    assert {("validate/val_error", 75), ("round/coupling_seconds", 25), ("validate/replica_error/1", 75)} <= set(found)
    # the last line was written when the file was
    assert found["round/samples_per_second", 75][1] == pytest.approx((run / "metrics.jsonl").stat().st_mtime)
    assert found["round/samples_per_second", 75][1] - found["round/samples_per_second", 25][1] == pytest.approx(4)


def test_metrics_of_any_task_are_shown_without_its_settings(tmp_path, shown):
    (tmp_path / "mine").mkdir()
    common = {"seconds": 1.5, "round": 0, "step": 7, "passes": 0.5}
    told = {"val_perplexity": 12.5, "train_bits": 3, "val_bleu": None, "kept": True, "what": "a word", "far": 1e39}
    events = [{"event": "start", **common, "ranks": 2}, {"event": "validate", **common, **told}]
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    tensorboard.write([tmp_path / "mine"], tmp_path / "out")
    found = shown(tmp_path / "out" / "mine")
    assert {key: value for key, (value, _) in found.items()} == {
        ("validate/val_perplexity", 7): 12.5,
        ("validate/train_bits", 7): 3,
    }


def test_a_run_that_goes_on_is_written_anew_and_nothing_is_double(run, tmp_path, shown):
    path, out = run / "metrics.jsonl", tmp_path / "out"
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    path.write_bytes(whole[: ends[2] + 30])
    tensorboard.write([run], out)
    (out / "one" / "events.out.tfevents.1.another").write_bytes(b"")
    (first,) = (out / "one").glob("*.parle_hpc")
    assert max(step for _, step in shown(out / "one")) == 25
    for _ in range(2):
        path.write_bytes(whole)
        tensorboard.write([run], out)
        assert {key: value for key, (value, _) in shown(out / "one").items()} == {
            key: float(np.float32(value)) for key, value in said(run).items()
        }
    (last,) = (out / "one").glob("*.parle_hpc")
    assert last.name > first.name
    assert {file.name for file in (out / "one").iterdir()} == {last.name, "events.out.tfevents.1.another"}


def test_two_runs_are_two_and_do_not_touch_each_other(run, tmp_path, shown):
    other = write_run(tmp_path / "runs" / "two", [7, 5], "--recipe", "lenet_digits", finished=False)
    tensorboard.write([run, other, run / ".." / "one"], tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out" / "one").iterdir()}
    tensorboard.write([other], tmp_path / "out")
    assert {file: file.read_bytes() for file in (tmp_path / "out" / "one").iterdir()} == before
    assert shown(tmp_path / "out" / "two")["validate/val_error", 50][0] == 5
    assert shown(tmp_path / "out" / "one")["validate/val_error", 50][0] == 2


def refused(folders, out):
    with pytest.raises(BadInput) as told:
        tensorboard.write(folders, out)
    assert not out.is_dir()
    return str(told.value)


def test_what_is_no_run_gets_one_line_and_nothing_is_written(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert refused([run, tmp_path], out) == f"{tmp_path} holds no run: metrics.jsonl is missing"
    namesake = write_run(tmp_path / "others" / "one", [1], "--recipe", "lenet_digits")
    assert f"{run} and {namesake} have one name, one; " in refused([run, namesake], out)
    out.write_text("")
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    assert refused([run], out).startswith(f"--tensorboard {out / 'one'}: cannot be written (")
    out.unlink()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"step": 25', '"step": "many"', 1))
    assert f"{run / 'metrics.jsonl'}, line 2, is not what a run writes (step: " in refused([run], out)
    (run / "metrics.jsonl").write_text(text)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = refused([run], out)
    assert line.startswith("--tensorboard needs what is not installed here (")
    assert line.endswith("): pip install tensorboard")


def test_one_of_the_two_kinds_of_report_is_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "leave", lambda error, status: sys.exit(f"{status} {error}"))
    for arguments in ([], ["--out", tmp_path / "x", "--tensorboard", tmp_path / "y"]):
        monkeypatch.setattr(sys, "argv", ["report", str(run), *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"2 .*--out.*--tensorboard|2 .*--tensorboard.*--out"):
            report.main()
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]
