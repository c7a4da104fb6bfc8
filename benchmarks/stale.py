"""What stale values cost: the error of a run in which each replica sees the others' x^a of some rounds ago.

    python benchmarks/stale.py [--ages 0 1 2 5] [--seeds 0 1 2] [--replicas 3] [--out FOLDER] [--json FILE] [SETTING]

x in (8c) is then 1/n (x^a + sum over the others of what they were so many rounds before), as a member of a mailbox sees
it; everything else is the trainer. Settings go to the trainer; LeNet on MNIST, 40 rounds, where none are given. A run
that is finished is not run again.
"""

import json
import sys
from collections import deque
from pathlib import Path

from bench import command_line, write
from helpers.mpi import COLD, mpirun

SETTINGS = ("--recipe", "lenet_mnist", "--schedule.max_rounds", "40", "--run.validate_every", "40")


def late(age):
    """The MPIReference whose mean has the others as they were so many rounds ago."""
    from parle_hpc.coupling.reference import MPIReference

    class Late(MPIReference):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._past = deque(maxlen=age + 1)

        def start(self, xa):
            super().start(xa)
            self._past.append([xa.clone(), None])

        def collect(self):
            mean = super().collect()
            if not self._past:
                return mean
            if self._past[-1][1] is None:
                self._past[-1][1] = mean.clone()
            # `start` calls this too, before it has an x^a of its own
            own, then = self._past[-1][0], self._past[0]
            return then[1] + (own - then[0]) / self.n

    return Late


def train(age, settings):
    """One rank of a run."""
    from parle_hpc import train as program
    from parle_hpc.coupling import choice

    choice.MPIReference = late(age)
    program.main(settings)


def main():
    if sys.argv[1:2] == ["--rank"]:
        train(int(sys.argv[2]), sys.argv[3:])
        return
    parser = command_line(__doc__)
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 1, 2, 5], help="in rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--out", default="runs/stale", help="folder of the runs (default: runs/stale)")
    given, settings = parser.parse_known_args()
    errors = {}
    for seed in given.seeds:
        for age in given.ages:
            out = Path(given.out) / f"age{age}-seed{seed}"
            run = (*(settings or SETTINGS), "--run.seed", seed, "--replicas", given.replicas, "--out", out)
            if not (out / "reference.pt").exists():
                program = (Path(__file__).resolve(), "--rank", age)
                result = mpirun(given.replicas, *program, *run, python=COLD, timeout=None)
                if result.returncode:
                    sys.exit(result.stderr)
            last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-2])
            errors.setdefault(age, []).append(last["val_error"])
            print(f"{age} rounds old, seed {seed}: {last['val_error']:.2f} %", flush=True)
    for age, found in errors.items():
        print(f"{age} rounds old: {sum(found) / len(found):.2f} %  ({', '.join(f'{e:.2f}' for e in found)})")
    write({"replicas": given.replicas, "errors": errors}, given.json)


if __name__ == "__main__":
    main()
