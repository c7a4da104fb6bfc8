"""Runs that are killed at random instants and started again until they end, compared with one that was left alone.

    python tests/faults/soak.py N [--ranks 4] [--seed 0] [--first 0] [--kind KIND] [--folder DIR]

Exit status 1 if one differs. A trial: a few rounds of an algorithm on the digits, a checkpoint after each; once or
twice, at an instant drawn at random (also while a checkpoint is being written, and while the ranks start), a blow: kill
-9 of one rank, of all ranks or of the launcher, or SIGUSR1; the same command again after each, and at last until it
ends. What it leaves must be bit for bit what the undisturbed run left: the reference, and each round's and validation's
numbers. gpt_text is the whole recipe, struck at any instant of it.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers.mpi import ENVIRONMENT

from parle_hpc.errors import SAVED
from parle_hpc.settings import DATA_PARALLEL

TINY = ("--data.samples", "400", "--data.batch_size", "12", "--run.checkpoint_every", "1", "--run.validate_every", "3")
ROUNDS = ("--algorithm.L", "6", "--schedule.max_rounds", "12")
PASSES = (*ROUNDS, "--schedule.epochs", "9")
KINDS = {
    "parle": ROUNDS,
    "parle, bfloat16, lagged": (*ROUNDS, "--algorithm.payload", "bfloat16", "--algorithm.reference", "lagged"),
    "parle, workers": (*ROUNDS, "--algorithm.inside", "workers"),
    "entropy_sgd": (*ROUNDS, "--algorithm.name", "entropy_sgd"),
    "elastic_sgd": ("--algorithm.name", "elastic_sgd", "--schedule.max_rounds", "4", "--schedule.epochs", "9"),
    "sgd": ("--algorithm.name", "sgd", "--schedule.max_rounds", "4", "--schedule.epochs", "9"),
    "diloco": (*PASSES, "--algorithm.name", "diloco"),
    "diloco, overlap": (*PASSES, "--algorithm.name", "diloco", "--algorithm.overlap", "true"),
    "local_sgd": (*PASSES, "--algorithm.name", "local_sgd", "--algorithm.post_local_start", "1"),
    "sam, swa": (
        *("--algorithm.name", "sam", "--schedule.max_rounds", "4", "--schedule.epochs", "9"),
        *("--algorithm.average", "swa", "--algorithm.average_start", "0.25"),
    ),
    "parle, ema": (*ROUNDS, "--algorithm.average", "ema"),
}
# of kinds that are asked for alone
RECIPES = {"gpt_text": ("--recipe", "gpt_text", "--run.checkpoint_every", "1")}
BLOWS = ("one rank", "all ranks", "launcher", "SIGUSR1")
TIMED = {"seconds", "samples_per_second", "coupling_seconds", "coupling_wait_seconds", "coupling_bytes_sent"}
PATIENCE = 900.0  # seconds in which a run must end


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def program(kind, folder, data, ranks):
    """What each rank runs of a trial."""
    # of one replica where the ranks are three, so that a replica with three ranks is among the trials
    replicas = () if kind.partition(",")[0] in DATA_PARALLEL else ("--replicas", "2" if ranks % 2 == 0 else "1")
    settings = RECIPES[kind] if kind in RECIPES else (*KINDS[kind], *TINY, "--data.path", str(data))
    return ("-m", "parle_hpc.train", *settings, "--out", str(folder), *replicas)


class Job:
    """One start of the training program on `ranks` ranks."""

    def __init__(self, kind, folder, data, ranks, log):
        self.folder = folder
        command = ["mpirun", "-np", str(ranks), sys.executable, *program(kind, folder, data, ranks)]
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, stdin=subprocess.DEVNULL)
        self.ranks = []

    def wait_until(self, condition, seconds):
        """Look for `condition`, the end of the job or of the time; whether the job goes on."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end and not condition():
            time.sleep(0.002)
        self.ranks = children(self.process.pid) or self.ranks
        return self.process.poll() is None

    def strike(self, blow, rng):
        """Deal a blow to what is there."""
        with contextlib.suppress(ProcessLookupError):
            if blow == "SIGUSR1":
                self.process.send_signal(signal.SIGUSR1)
            elif blow == "launcher":
                self.process.kill()
            elif self.ranks:
                for pid in self.ranks if blow == "all ranks" else [rng.choice(self.ranks)]:
                    os.kill(pid, signal.SIGKILL)

    def end(self):
        """Wait for the end of the launcher and of every rank; its status."""
        status = self.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(os.path.exists(f"/proc/{pid}") for pid in self.ranks):
            if time.monotonic() > deadline:
                raise AssertionError(f"ranks {self.ranks} still live after their job")
            time.sleep(0.05)
        return status


def result(folder):
    """What a run leaves: the bytes of its reference, and its events without times."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [e for e in events if e["event"] in ("round", "validate")]
    return (folder / "reference.pt").read_bytes(), [{k: v for k, v in e.items() if k not in TIMED} for e in kept]


def trial(kind, folder, data, ranks, rng, within=None):
    """Run, strike, go on; the blows that were dealt. The folder holds the result and every output, in `log`.

    within: seconds of which any instant may be the one; None: the start, training or saving of a short run.
    """
    blows = []
    with open(folder.with_suffix(".log"), "w") as log:
        for _ in range(rng.choice([1, 1, 2])):
            job = Job(kind, folder, data, ranks, log)
            blow = rng.choice(BLOWS)
            moment = "any" if within else rng.choice(["any", "training", "training", "saving"])
            # what the last blow left is no sign of this job
            before = {seen: {*folder.glob(seen)} for seen in ("checkpoints/*/*.partial", "checkpoints/round-*")}
            if moment == "any":
                goes_on = job.wait_until(lambda: False, rng.uniform(0, within or 8))
            else:
                # the folder is there once training is near, a new checkpoint's once it is on
                seen = "checkpoints/*/*.partial" if moment == "saving" else "checkpoints/round-*"
                goes_on = job.wait_until(lambda before=before, seen=seen: set(folder.glob(seen)) - before[seen], 60)
                if goes_on and moment == "training":
                    goes_on = job.wait_until(lambda: False, rng.uniform(0, 3))
            if goes_on:
                job.strike(blow, rng)
                blows.append(f"{blow}, {moment}")
            status = job.end()
            if blow == "SIGUSR1" and moment != "any" and goes_on:
                assert status in (0, SAVED), f"status {status} after SIGUSR1"
        job = Job(kind, folder, data, ranks, log)
        job.wait_until(lambda: False, PATIENCE)
        assert job.end() == 0, "the run that was left to its end did not end well"
    return blows


def undisturbed(kind, folder, data, ranks):
    """The result of a run that is left alone."""
    with open(folder.with_suffix(".log"), "w") as log:
        job = Job(kind, folder, data, ranks, log)
        job.wait_until(lambda: False, PATIENCE)
        assert job.end() == 0, folder.with_suffix(".log").read_text()
    return result(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to go on with (default 0)")
    parser.add_argument("--ranks", type=int, default=4, help="ranks of each run (default 4: 2 replicas of 2)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default 0)")
    parser.add_argument("--kind", choices=[*KINDS, *RECIPES], help="of all trials (default: each in turn)")
    parser.add_argument("--folder", help="where runs that differ are kept (default: a new one)")
    given = parser.parse_args()
    from parle_hpc.data.prepare import prepare

    work = Path(given.folder or tempfile.mkdtemp(prefix="soak-"))
    work.mkdir(parents=True, exist_ok=True)
    data = prepare("digits", out=work / "digits.h5")
    kinds = list(KINDS) if given.ranks % 2 == 0 else ["parle", "sgd", "entropy_sgd"]
    kinds = [given.kind] if given.kind else kinds
    wanted, same, dealt = {}, Counter(), Counter()
    for i in range(given.first, given.first + given.trials):
        kind, rng = kinds[i % len(kinds)], random.Random(1000 * given.seed + i)
        if kind not in wanted:
            began = time.monotonic()
            wanted[kind] = undisturbed(kind, work / f"undisturbed-{kinds.index(kind)}", data, given.ranks)
            within = time.monotonic() - began if kind in RECIPES else None
        folder = work / f"trial-{i}"
        try:
            blows = trial(kind, folder, data, given.ranks, rng, within)
            equal = result(folder) == wanted[kind]
        except (AssertionError, subprocess.TimeoutExpired) as error:
            blows, equal = [str(error)], False
        same[kind, equal] += 1
        dealt.update(blows)
        print(f"{i}: {kind}: {'identical' if equal else f'DIFFERS, see {folder}'} ({'; '.join(blows)})")
        sys.stdout.flush()
        if equal:
            shutil.rmtree(folder, ignore_errors=True)
    good = sum(count for (_, equal), count in same.items() if equal)
    print(
        f"{good} of {given.trials} bit-identical on {given.ranks} ranks: "
        + ", ".join(f"{kind} {same[kind, True]}/{same[kind, True] + same[kind, False]}" for kind in kinds)
    )
    print("blows: " + ", ".join(f"{blow} {count}" for blow, count in sorted(dealt.items())))
    sys.exit(good != given.trials)


if __name__ == "__main__":
    main()
