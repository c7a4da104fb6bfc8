"""The race of benchmarks/race.py: where a turn ends, and the arithmetic of its table."""

from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import race_table

    return race_table


@pytest.fixture
def racers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import racers

    return racers


def rows(racer, *found):
    """Found: (seconds, error) of each round; a round sends 10 bytes."""
    return [
        {"racer": racer, "round": i, "seconds": seconds, "bytes": 10 * i, "error": error}
        for i, (seconds, error) in enumerate(found, 1)
    ]


def a_run(seed=0, faster=1.0):
    sgd = rows("sgd_horovod", (10.0, 5.0), (20.0, 2.0), (30.0, 3.0))
    parle = rows("parle", (faster, 90.0), (2 * faster, None), (3 * faster, 2.0), (4 * faster, 1.0))
    return {"rate": "25mbit", "hosts": 2, "seed": seed, "rows": sgd + parle}


def test_every_racer_has_a_name(table, racers):
    assert set(table.LABELS) == set(racers.RACERS)


def test_seconds_and_bytes_to_an_error(table):
    found = table.summary(a_run())
    # SGD's best is 2.0, after two of its rounds
    assert (found["sgd_horovod"]["seconds"], found["sgd_horovod"]["bytes"]) == (20.0, 20)
    assert (found["parle"]["seconds"], found["parle"]["bytes"]) == (3.0, 30)
    assert (found["sgd_horovod"]["best"], found["sgd_horovod"]["end"]) == (2.0, 3.0)
    found = table.summary(a_run(), target=1.5)
    assert found["sgd_horovod"]["seconds"] is None
    assert found["parle"]["seconds"] == 4.0


def test_errors_at_equal_time(table):
    assert table.quickest(a_run()) == 4.0
    found = table.summary(a_run())
    assert (found["parle"]["at"], found["sgd_horovod"]["at"]) == (1.0, None)
    # the second round was not validated
    assert table.summary(a_run(), at=2.5)["parle"]["at"] == 90.0
    assert table.summary(a_run(), at=25.0)["sgd_horovod"]["at"] == 2.0


def test_without_the_baseline_there_is_no_target(table):
    run = a_run()
    run["rows"] = [row for row in run["rows"] if row["racer"] == "parle"]
    assert table.summary(run)["parle"]["seconds"] is None


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(table, capsys):
    run = a_run()
    run["rows"] = run["rows"][:1] + rows("parle", (1.0, None))
    table.show([run])
    shown = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["SGD,", "Horovod"] for line in shown)
    assert not any("Parle" in line for line in shown)


def test_means_over_seeds(table, capsys):
    runs = [a_run(), a_run(seed=1, faster=2.0)]
    seconds, error, deviation = table.curve(runs, "parle")
    assert (seconds.tolist(), error.tolist(), deviation.tolist()) == ([1.5, 4.5, 6.0], [90.0, 2.0, 1.0], [0.0] * 3)
    table.show(runs)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Parle" in line)
    assert "4.5 ± 2.1" in line
    runs[1]["rows"] = [row for row in runs[1]["rows"] if row["error"] not in (1.0, 2.0)]
    table.show(runs, target=2.0)
    assert "(1 of 2)" in capsys.readouterr().out
    assert table.figure(runs).axes


@pytest.mark.parametrize(("hides", "updates"), [(True, [24, 49, 75]), (False, [25, 50, 75])])
def test_a_turn_ends_where_the_racer_would_wait(racers, monkeypatch, hides, updates):
    done, finished = [], []
    monkeypatch.setattr(racers, "backward", lambda *_: None)
    racer = racers.Racer.__new__(racers.Racer)
    racer.kind, racer.rounds, racer.round = racers.Kind(None, (), hides=hides), 3, 0
    racer._params, racer._computing, racer._loader, racer._step, racer._waiting = [], None, lambda step: step, 0, False
    racer._optimizer = SimpleNamespace(step=lambda: done.append(0), finish=lambda: finished.append(len(done)))
    racer._schedule = SimpleNamespace(step=lambda: None)
    for _ in range(3):
        racer._train()
    assert finished == updates
