"""A run of four replicas that goes on with two and then with four again, beside runs that were left alone.

    PYTHONPATH=tests python tests/faults/regroup.py [--seeds 5]      # exit status 1 if it ends worse

The main recipe, lenet_digits, on n = 4, 2, 4 ranks of a replica each, changed after a third and two thirds of its
rounds. It must end at most LIMIT percentage points above the worst of the undisturbed seeds.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from helpers.mpi import passes

from parle_hpc.data.prepare import prepare

LIMIT = 0.6
ROUNDS = 20


def train(folder, data, seed, replicas, rounds):
    options = ["--data.path", data, "--out", folder, "--run.seed", seed, "--schedule.max_rounds", rounds]
    passes(replicas, "-m", "parle_hpc.train", *options, "--replicas", replicas)
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["val_error"] for event in events if event["event"] == "validate"][-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="undisturbed runs (default 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regroup-") as folder:
        work = Path(folder)
        data = prepare("digits", out=work / "digits.h5")
        alone = [train(work / f"seed{seed}", data, seed, 4, ROUNDS) for seed in range(given.seeds)]
        print("undisturbed, n = 4: " + ", ".join(f"{error:.2f}" for error in alone) + " %", flush=True)
        steps = ((4, ROUNDS // 3), (2, 2 * ROUNDS // 3), (4, ROUNDS))
        errors = [train(work / "regrouped", data, 0, replicas, rounds) for replicas, rounds in steps]
    told = [f"{error:.2f} % after {rounds} rounds" for error, (_, rounds) in zip(errors, steps, strict=True)]
    print(f"n = 4, 2, 4: {', '.join(told)}")
    sys.exit(errors[-1] > max(alone) + LIMIT)


if __name__ == "__main__":
    main()
