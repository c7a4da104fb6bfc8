"""One process at a time in a folder: of many at once each has it alone, and who is killed is not waited for."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import sys, time
from pathlib import Path
sys.modules["fcntl"] = None
sys.path.append(sys.argv[2])
import claim
claim.POLL = 0.01
for _ in range(5):
    with claim.Claim(Path(sys.argv[1])):
        seen = int(Path(sys.argv[1], "count").read_text())
        time.sleep(0.01)
        Path(sys.argv[1], "count").write_text(str(seen + 1))
"""


def test_of_many_at_once_each_has_it_alone_with_a_python_that_has_no_packages(tmp_path):
    (tmp_path / "count").write_text("0")
    (tmp_path / "at-work.json").write_text("of a process that was killed")
    os.utime(tmp_path / "at-work.json", (0, 0))
    command = [sys.executable, "-S", "-c", COUNTS, tmp_path, ROOT / "install"]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [one.communicate(timeout=200)[0] for one in many]
    assert [one.returncode for one in many] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"
    assert all("is at work in" in line for text in printed for line in text.splitlines())
    # at most a line for each time that one of them has waited
    assert all(text.count("\n") <= 5 for text in printed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count"]


STAYS = """
import sys, time
sys.path.append(sys.argv[2])
import claim
with claim.Claim(sys.argv[1]):
    print("has it", flush=True)
    time.sleep(100)
"""


def test_who_waits_for_a_killed_one_goes_on(tmp_path):
    command = [sys.executable, "-S", "-c", STAYS, tmp_path, ROOT / "install"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "has it\n"
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert f"-- process {first.pid} on " in second.stdout.readline()
    first.kill()
    first.wait()
    assert second.stdout.readline() == "has it\n"
    second.kill()
    second.wait()
