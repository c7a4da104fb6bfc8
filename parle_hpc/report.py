"""Tables and figures of finished runs, beside the paper's.

    python -m parle_hpc.report RUN_DIR ... --out DIR

Runs that differ by seed alone are one group: means and standard deviations are over them. DIR gets index.html, one page
that needs no network; each figure as PNG and PDF; each table as Markdown and LaTeX. Errors are those of the reference,
in percent; the training error is with dropout off and BatchNorm statistics computed anew, as section 4.5 needs it.
"""

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paper.pages import write
from .paths import as_path


def main():
    parser = Parser(prog="python -m parle_hpc.report", description="tables and figures of runs, beside the paper's")
    parser.add_argument("runs", type=as_path, nargs="+", metavar="RUN_DIR", help="output folders of runs")
    parser.add_argument("--out", type=as_path, required=True, help="folder for the page, the figures and the tables")
    try:
        arguments = parser.parse_args()
        page = write(arguments.runs, arguments.out)
    except BadInput as error:
        leave(error, BAD_INPUT)
    print(f"written {page}")


if __name__ == "__main__":
    main()
