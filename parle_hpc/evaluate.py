"""The scores of a finished run's reference on the validation samples.

python -m parle_hpc.evaluate RUN_DIR [--data.path FILE]
"""

import torch

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paths import as_path
from .training.finished import DATA_PATH, open_run, validation_of
from .training.summary import shown


def main():
    parser = Parser(prog="python -m parle_hpc.evaluate", description="validate the reference of a finished run")
    parser.add_argument("run", type=as_path, metavar="RUN_DIR", help="output folder of the run")
    parser.add_argument("--data.path", type=as_path, metavar="FILE", dest="data_path", help=DATA_PATH)
    try:
        arguments = parser.parse_args()
        settings, sources, model = open_run(arguments.run, arguments.data_path)
    except BadInput as error:
        leave(error, BAD_INPUT)
    validation = validation_of(settings, sources, model, torch.device("cpu"))
    print(f"validation {shown(validation.test(), sources.task.units)}, on {len(sources.validation):,} samples")


if __name__ == "__main__":
    main()
