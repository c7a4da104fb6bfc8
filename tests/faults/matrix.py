"""Every documented call of the optimiser and the topology on one rank too few, once too often and too early.

    PYTHONPATH=tests python tests/faults/matrix.py [--shapes 2x1 1x2 2x2] [--jobs 1]

For each it says how the job ended, and at the end how many ended right, how many with a line or a traceback that says
what is wrong, and how many in neither way: with ranks that silently hold other things, or a wait of more than 20 s.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.mpi import COLD, mpirun, our_lines

FAULTS = ("missing", "twice", "early")
NAMES = "broadcast backward average step average step average coupling at_reference average step "
NAMES += "state_dict load_state_dict together batchnorm finish at_reference"
WITHIN = 120.0  # seconds after which a job counts as one that hangs


def one(fault, number, shape):
    """(How the job ended, in a word; what it said; seconds from the start)."""
    n, m = map(int, shape.split("x"))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = ("-m", "programs.matrix", fault, number, n, folder)
            result = mpirun(n * m, *command, python=COLD, timeout=WITHIN)
        except subprocess.TimeoutExpired:
            return "hangs", "", WITHIN
        seconds = time.monotonic() - started
        files = sorted(Path(folder).iterdir(), key=lambda path: int(path.stem))
        held = [json.loads(path.read_text()) for path in files]
    if result.returncode == 0:
        right = len(held) == n * m and alike(held, m)
        return ("right" if right else "silently different"), "", seconds
    lines = our_lines(result) or [line for line in result.stderr.splitlines() if "Error: " in line][:1]
    return ("a line" if lines else "no line"), " | ".join(lines), seconds


def alike(held, m):
    """Whether all ranks have the same reference and steps, and those of a replica the same x^a and y."""
    same = all(h["reference"] == held[0]["reference"] and h["steps"] == held[0]["steps"] for h in held)
    groups = [held[i : i + m] for i in range(0, len(held), m)]
    return same and all(h["x"] == g[0]["x"] and h["y"] == g[0]["y"] for g in groups for h in g)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2x1", "1x2", "2x2"])
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    names = NAMES.split()
    cases = [(f, i, s) for s in arguments.shapes for i in range(len(names)) for f in FAULTS]
    print(f"{len(cases)} cases", flush=True)
    usual = {shape: one("none", 0, shape) for shape in arguments.shapes}
    print("without a fault:", usual, flush=True)
    counts, longest = Counter(), 0.0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for case, (how, said, seconds) in zip(cases, pool.map(lambda case: one(*case), cases), strict=True):
            fault, i, shape = case
            waited = seconds - usual[shape][2]
            longest, counts[how] = max(longest, waited), counts[how] + 1
            print(f"{shape} {names[i]} ({i}) {fault}: {how}, {waited:+.0f} s: {said}", flush=True)
    print(f"{dict(counts)}; the longest took {longest:.0f} s more than a run without a fault")
    bad = counts["hangs"] + counts["no line"] + counts["silently different"]
    return int(bad > 0 or any(how[0] != "right" for how in usual.values()))


if __name__ == "__main__":
    sys.exit(main())
