"""Bad input for every program: each case is answered by one line and status 2, or was right after all.

    PYTHONPATH=tests python tests/faults/fuzz.py 500 [SEED]      # until so many were refused; the counts

Of what a program refuses is asked: exit status 2, one line on stderr, which begins with "parle_hpc: " and names the
file or the setting, in LIMIT seconds, and no file left behind. What else it may do: its work.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from faults.fuzz_cases import KINDS
from faults.fuzz_files import EVIL
from faults.fuzz_server import Server
from hypothesis import HealthCheck, Phase, given, seed, settings

LIMIT = 30.0  # seconds
LONGEST = 600  # characters of a line
DIVERGED = 3
# every example anew from the seed, however long one takes
ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def lay_out(files, folder):
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def listing(folder):
    return {path for path in folder.rglob("*") if not path.is_dir()}


def answer(server, case):
    """(refused, Outcome) of a case. Raises AssertionError where it was neither refused as it should be nor right."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        # where ".." leads is ours too
        folder = Path(scratch) / "a" / "b" / "c"
        folder.mkdir(parents=True)
        lay_out(case.files, folder)
        before = listing(Path(scratch))
        outcome = server.run(case.program, case.arguments, folder, case.begun)
        left = sorted(os.path.relpath(path, folder) for path in listing(Path(scratch)) - before)
    assert EVIL not in left, "something of the input was executed"
    assert "Traceback" not in outcome.stderr, outcome.stderr
    lines = outcome.stderr.splitlines()
    if outcome.works or outcome.status == DIVERGED:
        assert all(line.startswith("parle_hpc: ") for line in lines), outcome
        return False, outcome
    assert outcome.status == 2, outcome
    assert len(lines) == 1, outcome
    assert lines[0].startswith("parle_hpc: "), outcome
    assert len(lines[0]) < LONGEST, outcome
    assert any(name in lines[0] for name in case.names if name), outcome
    assert not left, f"left behind: {left}"
    return True, outcome


def soak(server, kind, count, number):
    """Counts of a kind of case: (refused, right, failures as text, the longest time), until `count` were refused."""
    counts, failures, longest = Counter(), [], 0.0

    @seed(number)
    @settings(max_examples=20 * count, phases=[Phase.generate], **ALWAYS)
    @given(KINDS[kind])
    def each(case):
        nonlocal longest
        if counts["refused"] + len(failures) >= count:
            return
        try:
            refused, outcome = answer(server, case)
            counts["refused" if refused else "right"] += 1
            longest = max(longest, outcome.seconds)
        except AssertionError as error:
            failures.append(f"{case.program} {str(case.arguments)[:300]}\n{str(error)[-1500:]}")

    each()
    return counts["refused"], counts["right"], failures, longest


def main(count, number=0):
    everything = []
    with Server() as server:
        for i, kind in enumerate(KINDS):
            share = count // len(KINDS) + (i < count % len(KINDS))
            refused, right, failures, longest = soak(server, kind, share, number)
            everything.append((refused, right, len(failures), longest))
            for failure in failures:
                print(f"FAILED {kind}: {failure}\n")
            print(
                f"{kind}: {refused} refused by one line, {right} were right, {len(failures)} failed, "
                f"longest {longest:.1f} s",
                flush=True,
            )
    refused, right, failed, _ = (sum(column) for column in zip(*everything, strict=True))
    print(f"{refused} bad inputs answered by one line each, {right} were right, {failed} failed; seed {number}")
    return failed > 0 or max(longest for *_, longest in everything) > LIMIT


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
