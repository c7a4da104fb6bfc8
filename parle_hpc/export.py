"""A finished run's reference as a file that other tools read; the data set is not needed.

    python -m parle_hpc.export RUN_DIR --safetensors FILE

FILE, whose name ends in .safetensors, has the tensors of RUN_DIR/reference.pt, bit for bit, under their names, so that
model.load_state_dict(safetensors.torch.load_file(FILE)) takes them; and as its metadata the recipe's name, the settings
in TOML, and the version of parle_hpc.
"""

from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paths import as_path
from .training.exported import write_safetensors


def main():
    parser = Parser(prog="python -m parle_hpc.export", description="the reference of a finished run for other tools")
    parser.add_argument("run", type=as_path, metavar="RUN_DIR", help="output folder of the run")
    parser.add_argument("--safetensors", type=as_path, metavar="FILE", required=True, help="the file, NAME.safetensors")
    try:
        arguments = parser.parse_args()
        path = write_safetensors(arguments.run, arguments.safetensors)
    except BadInput as error:
        leave(error, BAD_INPUT)
    print(f"written {path}")


if __name__ == "__main__":
    main()
