"""Section 1.2: how far apart independent networks are, what their average is worth, and what alignment changes.

    python -m parle_hpc.analysis RUN_DIR RUN_DIR ... [--replicas RUN_DIR] [--out DIR] [--data.path FILE]

Each RUN_DIR is a finished run of the same network on the same data, with a seed of its own. For them it gives the
error of each, of their ensemble, of their average ("one-shot averaging") and of their average after each was aligned to
the first, and for each layer the overlap of Figure 1 before and after. --replicas does the same for the replicas that
one run of Parle kept (--run.save_replicas true). Every average gets BatchNorm statistics of its own.
"""

from tabulate import tabulate

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paper.pages import open_folder, write_analysis
from .paper.study import study, study_of_replicas
from .paper.tables import analysis_rows
from .paths import as_path
from .training.finished import DATA_PATH


def main():
    parser = Parser(prog="python -m parle_hpc.analysis", description="section 1.2 for finished runs")
    parser.add_argument("runs", type=as_path, nargs="+", metavar="RUN_DIR", help="independent runs that differ by seed")
    parser.add_argument("--replicas", type=as_path, metavar="RUN_DIR", help="a run of Parle that kept its replicas")
    parser.add_argument("--out", type=as_path, default="reports/analysis", help="folder for the table and Figure 1")
    parser.add_argument("--data.path", type=as_path, metavar="FILE", dest="data_path", help=DATA_PATH)
    try:
        arguments = parser.parse_args()
        open_folder(arguments.out)
        # everything that may be wrong before anything that takes long
        replicas = None
        if arguments.replicas is not None:
            replicas = study_of_replicas(arguments.replicas, arguments.data_path)
        groups = {"independent": study(arguments.runs, arguments.data_path).results()}
        if replicas:
            groups["replicas of Parle"] = replicas.results()
        page = write_analysis(groups, arguments.out)
    except BadInput as error:
        leave(error, BAD_INPUT)
    told = [pair for name, results in groups.items() for pair in analysis_rows(name, results)]
    print(tabulate(told, tablefmt="plain", disable_numparse=True))
    print(f"written {page}")


if __name__ == "__main__":
    main()
