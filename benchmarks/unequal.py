"""A fast replica beside one that is throttled to a third: does it go on at its own speed, and what does it learn?

    python benchmarks/unequal.py [--seeds 0 1 2] [--rounds 40] [--out FOLDER] [--json FILE] [SETTING]

One replica on core 0, the other on core 1, which two programs burn besides. Samples a second of the fast one, medians
over its rounds: as the only member of a mailbox; beside the slow member; under MPI, which waits for the slow rank; and
with `pace = time`. Errors: of the members' reference when the fast one has done its rounds, of `pace = time`, and of
two ranks of MPI of one speed. LeNet on MNIST; settings go to the trainer.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from bench import command_line, write
from helpers.mpi import ENVIRONMENT

BURN = "while True: pass"
FIRST = 4  # rounds after which speeds count, and with pace = time lengths follow them


def on_core(core, *command):
    return ["taskset", "-c", str(core), sys.executable, *map(str, command)]


def start(command, stdout=subprocess.DEVNULL):
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def end(job):
    errors = job.communicate()[1]
    if job.returncode:
        sys.exit(errors)


@contextmanager
def throttled():
    """Core 1 is burned by two others."""
    burners = [start(on_core(1, "-c", BURN)) for _ in range(2)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.communicate()


def speed(run, share=1.0):
    """Samples a second of a run's rounds, its median, of which a replica made this share."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round" and event["round"] >= FIRST]
    of_first = [event.get("mini_batches", [1, 1]) for event in rounds]
    shares = [lengths[0] / sum(lengths) * len(lengths) * share for lengths in of_first]
    return statistics.median(event["samples_per_second"] * s for event, s in zip(rounds, shares, strict=True))


def error(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [event["val_error"] for event in lines if event["event"] == "validate"][-1]


def member(box, number, settings):
    mailbox = ("--coupling.via", "mailbox", "--coupling.folder", box, "--coupling.member", number)
    return start(on_core(number, "-m", "parle_hpc.train", *settings, *mailbox))


def under_mpi(out, settings):
    """Two ranks, each on its core."""
    one = ["-m", "parle_hpc.train", *settings, "--replicas", 2, "--out", out]
    end(start(["mpirun", "-np", "1", *on_core(0, *one), ":", "-np", "1", *on_core(1, *one)]))
    return out


def beside(box, settings):
    """(Samples a second of the fast member, error of the reference when it has done its rounds)."""
    fast, slow = (member(box, number, settings) for number in (0, 1))
    end(fast)
    # the slow one must live: of members that are gone nothing is gathered
    gathering = start(on_core(0, "-m", "parle_hpc.gather", box), stdout=subprocess.PIPE)
    told = gathering.communicate()[0]
    slow.kill()
    slow.communicate()
    return speed(box / "runs/0"), float(told.partition("validation error ")[2].split()[0])


def main():
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default="runs/unequal", help="folder of the runs (default: runs/unequal)")
    given, more = parser.parse_known_args()
    validates = ("--run.validate_every", given.rounds)
    settings = ("--recipe", "lenet_mnist", "--schedule.max_rounds", given.rounds, *validates, *more)
    short = (*settings, "--schedule.max_rounds", 12)
    found = {"errors": {"beside": [], "pace": [], "of one speed": []}, "samples_per_second": {}}
    speeds, errors = found["samples_per_second"], found["errors"]
    with throttled():
        end(member(given.out / "alone", 0, short))
        speeds["alone"] = speed(given.out / "alone/runs/0")
        # a rank's half of what both made
        speeds["steps"] = speed(under_mpi(given.out / "steps", short), 0.5)
    print(f"alone {speeds['alone']:.0f} samples/s; under MPI beside the slow rank {speeds['steps']:.0f}", flush=True)
    for seed in given.seeds:
        seeded = (*settings, "--run.seed", seed)
        with throttled():
            speeds[f"beside {seed}"], learned = beside(given.out / f"beside-{seed}", seeded)
            errors["beside"].append(learned)
            paced = under_mpi(given.out / f"pace-{seed}", (*seeded, "--algorithm.pace", "time"))
        speeds[f"pace {seed}"] = speed(paced, 0.5)
        errors["pace"].append(error(paced))
        errors["of one speed"].append(error(under_mpi(given.out / f"equal-{seed}", seeded)))
        fast, timed = speeds[f"beside {seed}"], speeds[f"pace {seed}"]
        print(f"seed {seed}: beside the slow member {fast:.0f} samples/s, pace = time {timed:.0f}", flush=True)
    for name, values in errors.items():
        print(f"{name}: {statistics.mean(values):.2f} %  ({', '.join(f'{value:.2f}' for value in values)})")
    write(found, given.json)


if __name__ == "__main__":
    main()
