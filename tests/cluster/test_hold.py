"""One folder, one run: a living holder is named, a dead one is in nobody's way, and of many at once one gets it."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from parle_hpc.cluster import hold
from parle_hpc.cluster.hold import Hold, begun, read, understood

# holds the folder, says so, and stays
STAYS = """
import sys, time
from parle_hpc.cluster import hold
hold.BEAT, hold.SILENT = 0.1, 0.4
try:
    hold.Hold(sys.argv[1])
    print("held", flush=True)
except hold.Held as error:
    sys.exit(str(error))
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hold, "BEAT", 0.1)
    monkeypatch.setattr(hold, "SILENT", 0.4)


def process(folder):
    return subprocess.Popen(
        [sys.executable, "-c", STAYS, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(folder, **differs):
    """Write what a holder would have, with some of it other."""
    text = json.dumps({**hold.here(), "process": os.getpid(), "begun": begun(os.getpid()), "since": "noon", **differs})
    (folder / hold.NAME).write_text(text)
    return text


def holder(folder):
    return understood(read(folder / hold.NAME) or "")


def dead():
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_living_run_is_named(tmp_path):
    one = process(tmp_path)
    assert one.stdout.readline() == "held\n"
    with pytest.raises(hold.Held) as refused:
        Hold(tmp_path)
    assert str(refused.value).startswith(f"process {one.pid} on {hold.here()['host']}, since 20")
    one.kill()
    one.wait()
    Hold(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_it_is_let_go(tmp_path):
    for _ in range(3):
        Hold(tmp_path).release()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "differs",
    [
        {"process": dead()},
        {"begun": 1},  # another process has its number now
        {"process": None, "begun": None},
        {"boot": "before", "process": 1},  # silent: nobody writes it
        {"host": "elsewhere"},
        {"namespace": 5},
    ],
)
def test_a_dead_one_is_in_nobodys_way(tmp_path, differs):
    told(tmp_path, **differs)
    mine = Hold(tmp_path)
    assert holder(tmp_path)["id"] == json.loads(mine._text)["id"]
    mine.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', "\0" * 20])
def test_nor_is_what_cannot_be_read(tmp_path, text):
    (tmp_path / hold.NAME).write_text(text)
    Hold(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("differs", [{"host": "elsewhere"}, {"boot": "other"}, {"namespace": 5}])
def test_one_on_another_machine_lives_while_its_file_is_written(tmp_path, differs):
    text, over = told(tmp_path, **differs), threading.Event()

    def writes():
        while not over.wait(0.05):
            with open(tmp_path / hold.NAME, "r+") as file:
                file.write(text)

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        with pytest.raises(hold.Held, match="since noon,"):
            Hold(tmp_path)
    finally:
        over.set()
        writer.join()
    time.sleep(0.5)
    Hold(tmp_path).release()


def test_a_clock_that_is_wrong_here_is_not_asked(tmp_path, monkeypatch):
    told(tmp_path, host="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    Hold(tmp_path).release()


def test_of_many_at_once_one_gets_what_a_dead_one_left(tmp_path):
    for _ in range(3):
        told(tmp_path, process=dead())
        all_of_them = [process(tmp_path) for _ in range(6)]
        try:
            refused = [one for one in all_of_them if one.stdout.readline() != "held\n"]
            assert len(refused) == 5
            for one in refused:
                assert "process " in one.stderr.read()
        finally:
            for one in all_of_them:
                one.kill()
                one.communicate()


def test_its_file_comes_back_where_somebody_removed_it(tmp_path):
    one = process(tmp_path)
    assert one.stdout.readline() == "held\n"
    (tmp_path / hold.NAME).unlink()
    until = time.monotonic() + 30
    while "process" not in holder(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert holder(tmp_path)["process"] == one.pid
    one.kill()
    one.communicate()


def test_who_was_taken_for_dead_ends_with_a_line(tmp_path):
    one = process(tmp_path)
    assert one.stdout.readline() == "held\n"
    told(tmp_path)
    assert one.wait(30) == 1
    (line,) = one.communicate()[1].splitlines()
    assert ", since noon, has taken it" in line
    assert f"process {os.getpid()} on " in line
    assert holder(tmp_path)["since"] == "noon"


def test_without_locks_of_files(tmp_path, monkeypatch):
    import fcntl

    def refuses(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(fcntl, "lockf", refuses)
    mine = Hold(tmp_path)
    with pytest.raises(hold.Held):
        Hold(tmp_path)
    mine.release()
