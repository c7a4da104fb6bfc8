"""Bad input is answered by one clear line: a short version of fuzz.py, and the same under mpirun."""

import subprocess
import sys

import pytest
from faults import fuzz_files as files
from faults.fuzz import lay_out, listing, soak
from faults.fuzz_cases import KINDS
from faults.fuzz_server import Server
from helpers.mpi import mpirun, our_lines

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_answered_by_one_line(server, kind):
    refused, _, failures, _ = soak(server, kind, 6, 1)
    assert not failures, "\n\n".join(failures)
    assert refused == 6


@pytest.mark.parametrize(
    ("recipe", "data", "name"),
    [
        (b"[data]\nbatch_size = \xff", files.data_set(), "mine.toml"),
        (b"[algorithm]\nname = ['sgd']", files.data_set(), "--algorithm.name"),
        (b"", files.data_set()[:-9000], "data.h5"),
    ],
)
def test_one_rank_of_two_says_it(tmp_path, recipe, data, name):
    lay_out({"mine.toml": recipe, "data.h5": data}, tmp_path)
    given = ["--recipe", "mine.toml", "--data.path", "data.h5", "--out", "out"]
    result = mpirun(2, "-m", "parle_hpc.train", *given, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = our_lines(result)
    assert name in line
    assert not listing(tmp_path / "out")


@pytest.mark.parametrize("name", ["nan", "x" * 5000])
def test_what_is_optional_is_looked_at_before_what_takes_long(tmp_path, name):
    """And a name of thousands of characters makes no line of thousands."""
    command = [sys.executable, "-m", "parle_hpc.analysis", "missing", "--replicas", name, "--out", tmp_path / "report"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    (line,) = our_lines(done)
    assert done.returncode == 2
    assert line.startswith(name[:200])
    assert len(line) < 600
