"""A fast replica beside one that is throttled to a third: does it go on at its own speed, and what does it learn?

    python benchmarks/unequal.py [--seeds 0 1 2] [--rounds 40] [--out FOLDER] [--json FILE] [SETTING]

One replica on core 0, the other on core 1, which two programs burn besides. Samples a second of the fast one, medians
over its rounds: as the only member of a mailbox; beside the slow member; under MPI, which waits for the slow rank; and
with `pace = time`. Errors: of the members' reference when the fast one has done its rounds, of `pace = time`, and of
two ranks of MPI of one speed. LeNet on MNIST; settings go to the trainer.
"""

import os
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from bench import command_line, write
from helpers.mpi import ENVIRONMENT
from helpers.trainer import events

BURN = "while True: pass"
FIRST = 4  # rounds after which speeds count, and with pace = time lengths follow them


def on_core(core, *command):
    return ["taskset", "-c", str(core), sys.executable, *map(str, command)]


def start(command, stdout=subprocess.DEVNULL):
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def end(job):
    """What it printed, of a job that must end well."""
    printed, errors = job.communicate()
    if job.returncode:
        sys.exit(errors)
    return printed


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


def speed(run, replicas=1):
    """Samples a second that the first of a run's replicas made, the median of its rounds."""
    rounds = [event for event in events(run, "round") if event["round"] >= FIRST]
    lengths = [event.get("mini_batches", [1] * replicas) for event in rounds]
    pairs = zip(rounds, lengths, strict=True)
    return statistics.median(event["samples_per_second"] * made[0] / sum(made) for event, made in pairs)


def error(run):
    return events(run, "validate")[-1]["val_error"]


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
    told = end(start(on_core(0, "-m", "parle_hpc.gather", box), stdout=subprocess.PIPE))
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
        speeds["steps"] = speed(under_mpi(given.out / "steps", short), 2)
    print(f"alone {speeds['alone']:.0f} samples/s; under MPI beside the slow rank {speeds['steps']:.0f}", flush=True)
    for seed in given.seeds:
        seeded = (*settings, "--run.seed", seed)
        with throttled():
            speeds[f"beside {seed}"], learned = beside(given.out / f"beside-{seed}", seeded)
            errors["beside"].append(learned)
            paced = under_mpi(given.out / f"pace-{seed}", (*seeded, "--algorithm.pace", "time"))
        speeds[f"pace {seed}"] = speed(paced)
        errors["pace"].append(error(paced))
        errors["of one speed"].append(error(under_mpi(given.out / f"equal-{seed}", seeded)))
        fast, timed = speeds[f"beside {seed}"], speeds[f"pace {seed}"]
        print(f"seed {seed}: beside the slow member {fast:.0f} samples/s, pace = time {timed:.0f}", flush=True)
    for name, values in errors.items():
        print(f"{name}: {statistics.mean(values):.2f} %  ({', '.join(f'{value:.2f}' for value in values)})")
    write(found, given.json)


if __name__ == "__main__":
    main()
