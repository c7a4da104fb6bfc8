"""Tables and figures of finished runs, beside the paper's; or what any runs tell, for TensorBoard.

    python -m parle_hpc.report RUN_DIR ... --out DIR
    python -m parle_hpc.report RUN_DIR ... --tensorboard DIR

Runs that differ by seed alone are one group: means and standard deviations are over them. DIR gets index.html, one page
that needs no network; each figure as PNG and PDF; each table as Markdown and LaTeX. Errors are those of the reference,
in percent; the training error is with dropout off and BatchNorm statistics computed anew, as section 4.5 needs it.

With --tensorboard DIR gets a folder of event files for each run, also of one that goes on; a later call replaces them.
"""

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paper import pages, tensorboard
from .paths import as_path


def main():
    parser = Parser(prog="python -m parle_hpc.report", description="tables and figures of runs, beside the paper's")
    parser.add_argument("runs", type=as_path, nargs="+", metavar="RUN_DIR", help="output folders of runs")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--out", type=as_path, metavar="DIR", help="folder for the page, the figures and the tables")
    kinds.add_argument("--tensorboard", type=as_path, metavar="DIR", help="folder for TensorBoard's event files alone")
    try:
        arguments = parser.parse_args()
        if arguments.tensorboard is None:
            written = pages.write(arguments.runs, arguments.out)
        else:
            written = tensorboard.write(arguments.runs, arguments.tensorboard)
    except BadInput as error:
        leave(error, BAD_INPUT)
    print(f"written {written}")


if __name__ == "__main__":
    main()
