"""Regenerate a table or a figure of the paper: list its runs and their cost, start what is missing, report.

    python -m parle_hpc.reproduce table1 --size laptop              # hours on two cores; says how many before it starts
    python -m parle_hpc.reproduce table1 --size laptop --dry-run    # print the commands and start nothing
    python -m parle_hpc.reproduce table2 --size paper --sbatch      # write batch scripts for a cluster

EXPERIMENT is table1, table2, fig1 to fig6, rivals (DiLoCo, local SGD, SAM, averaged weights), replicas (n = 1, 2, 3, 6,
8) or sensitivity (gamma_0 and rho_0). Runs lie in RUNS/SIZE/NAME and are shared between experiments; one that is
finished is not run again, so the same command goes on after an interruption, from the last checkpoint, and, where batch
jobs made the runs, only reports. Do not start it while such jobs are at work. Runs whose data set is not prepared are
left out, and named.
"""

import argparse
import shlex

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paper.campaign import available, list_runs, report, run, start, write_scripts
from .paper.experiments import EXPERIMENTS, SIZES
from .paper.pages import open_folder
from .paths import as_path


def options():
    """The command line. Raises BadInput."""
    parser = Parser(
        prog="python -m parle_hpc.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=list(EXPERIMENTS), metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--size", choices=SIZES, default="laptop", help="the paper's, or one for two cores (default)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the runs whose name contains this")
    parser.add_argument("--rounds", type=int, help="rounds of 25 mini-batches of each run, in place of the size's own")
    parser.add_argument("--data", type=as_path, default="data", help="folder of the prepared data sets (default data)")
    parser.add_argument("--runs", type=as_path, default="runs", help="folder of the runs (default runs)")
    parser.add_argument("--out", type=as_path, help="folder of the report (default reports/EXPERIMENT-SIZE)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    what.add_argument("--sbatch", action="store_true", help="write batch scripts into OUT/sbatch and start nothing")
    given = parser.parse_args()
    for key, most in (("seeds", 1000), ("rounds", 1_000_000)):
        if getattr(given, key) is not None and not 1 <= getattr(given, key) <= most:
            raise BadInput(f"--{key} {getattr(given, key)}: must be 1 to {most:,}")
    return given


def main():
    try:
        given = options()
        out = given.out or f"reports/{given.experiment}-{given.size}"
        specs = EXPERIMENTS[given.experiment][1](given.seeds, given.size, given.rounds)
        specs = [spec for spec in specs if given.only in spec.name]
        if not specs:
            raise BadInput(f"--only {given.only}: no run of {given.experiment} has that in its name; see --dry-run")
        if given.dry_run:
            for spec in specs:
                print(shlex.join(start(spec, given.runs, given.data)))
            return
        if given.sbatch:
            scripts = write_scripts(specs, given.runs, given.data, out)
            print(f"written {scripts}; when these jobs have ended, the same command without --sbatch reports")
            return
        specs = available(specs, given.data)
        open_folder(out)  # hours before the report needs it
        list_runs(specs, given.runs, given.data)
        run(specs, given.runs, given.data)
        print(f"written {report(given.experiment, specs, given.runs, given.data, out)}")
    except BadInput as error:
        leave(error, BAD_INPUT)
    except KeyboardInterrupt:
        leave("interrupted; the same command goes on with the run that it was at", 130)


if __name__ == "__main__":
    main()
