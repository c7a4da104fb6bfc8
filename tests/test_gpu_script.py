"""benchmarks/gpu.sh, which does what only a GPU shows: its commands are there, here too."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from helpers.mpi import ENVIRONMENT

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(*options):
    return subprocess.run(["bash", SCRIPT, *options], env=ENVIRONMENT, capture_output=True, text=True)


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=ENVIRONMENT["PATH"])
    checked = subprocess.run([program, SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_its_commands_are_there():
    for device in ("cuda", "cpu"):
        result = run("--dry-run", "--device", device)
        assert result.returncode == 0, result.stderr
        commands = [shlex.split(line) for line in result.stdout.splitlines()]
        files = {
            part for command in commands for part in command if re.fullmatch(r"(benchmarks|tests|install)/\S+", part)
        }
        assert len(files) >= 5
        assert all((ROOT / file).is_file() for file in files)
        assert all(device in command for command in commands if "--device" in command or "--run.device" in command)
    assert not (ROOT / "gpu.md").exists()


def test_what_it_does_not_know_is_one_line():
    for options in (["--devices", "cpu"], ["--device", "tpu"]):
        result = run(*options)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
