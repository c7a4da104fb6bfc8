"""One process at a time in a folder, without file locks; the dead are not waited for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "install"))

import claim as module  # noqa: E402
from claim import Claim  # noqa: E402

# fcntl, whose locks fail or mean nothing on some file systems, is not to be had
PROGRAM = f"""
import sys, time
sys.modules["fcntl"] = None
sys.path.append({str(ROOT / "install")!r})
import claim
from claim import Claim
from pathlib import Path
folder = Path(sys.argv[1])
"""
COUNTS = """
for _ in range(5):
    with Claim(folder):
        seen = int((folder / "count").read_text())
        time.sleep(0.01)
        (folder / "count").write_text(str(seen + 1))
"""
HOLDS = """
with Claim(folder):
    print("has it", flush=True)
    sys.stdin.read()
print("gave it back", flush=True)
"""


def start(code, folder):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, folder], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.05)
    monkeypatch.setattr(module, "BEAT", 0.1)
    monkeypatch.setattr(module, "PATIENCE", 1.0)


def test_of_many_at_once_each_has_it_alone(tmp_path):
    (tmp_path / "count").write_text("0")
    (tmp_path / "claim-7").write_text(f"{module.here()}|{2**22 + 1} 5")  # of a process that is no more
    many = [start("claim.POLL = 0.01\n" + COUNTS, tmp_path) for _ in range(4)]
    for process in many:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    assert (tmp_path / "count").read_text() == "20"
    # one small file stays, from which the next number is taken
    assert [path.name for path in tmp_path.glob("claim-*")] == ["claim-27"]


def test_who_waits_says_for_whom_and_goes_on_when_it_is_given_back(tmp_path, capsys):
    holder = start(HOLDS, tmp_path)
    assert holder.stdout.readline() == "has it\n"
    waiting = start("with Claim(folder) as claim: print(claim.waited)", tmp_path)
    line = waiting.stdout.readline()
    assert line.startswith(f"-- process {holder.pid} on ")
    assert line.endswith(f" is at work in {tmp_path}: waiting for it\n")
    assert waiting.poll() is None
    holder.stdin.close()
    assert waiting.stdout.read() == "True\n"
    with Claim(tmp_path) as claim:
        assert not claim.waited
    assert not capsys.readouterr().out


def test_a_killed_process_is_not_waited_for(tmp_path):
    holder = start(HOLDS, tmp_path)
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    # its corpse, which nobody has collected, is no process
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with Claim(tmp_path) as claim:
        assert not claim.waited
    holder.wait()


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    (tmp_path / "claim-1").write_text(f"{module.here()}|{os.getpid()} 1")
    with Claim(tmp_path) as claim:
        assert not claim.waited


def test_another_machines_claim_counts_while_it_is_touched(tmp_path, capsys):
    claim = tmp_path / "claim-1"
    claim.write_text("node7 0badc0de 4026531836|4711 99")
    touching = "for _ in range(30): (folder / 'claim-1').touch(); print(flush=True); time.sleep(0.1)"
    owner = start(touching, tmp_path)
    owner.stdout.readline()
    with Claim(tmp_path) as mine:
        assert mine.waited
        # it stood still for as long as a living one never does
        assert owner.wait(timeout=60) == 0
        assert time.time() - claim.stat().st_mtime > 0.9 if claim.exists() else True
    assert "process 4711 on node7 is at work" in capsys.readouterr().out


def test_who_stood_still_and_was_taken_over_ends(tmp_path):
    holder = start("claim.BEAT = 0.1\n" + HOLDS, tmp_path)
    holder.stdout.readline()
    (tmp_path / "claim-2").write_text("node7 0badc0de 4026531836|4711 99")
    assert holder.wait(timeout=60) == 2
    assert "was taken over by another process" in holder.stderr.read()
