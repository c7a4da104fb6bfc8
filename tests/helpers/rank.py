"""One rank of a test: runs commands one after the other; where one fails it ends at once, and mpirun ends the others.

    rank.py PROGRAM.py ARGUMENTS... -- -m MODULE ARGUMENTS...

Without it a rank that raises would wait in MPI's end for the others, and these in a collective for it. What rank 0
prints of each command is followed by a line BETWEEN.
"""

import os
import runpy
import sys
import traceback

BETWEEN = "\x1e"


def run(command):
    """A program, or a module as `python -m` runs it, in this process."""
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, os.path.dirname(command[0])
        runpy.run_path(command[0], run_name="__main__")


def main():
    commands = [[]]
    for argument in sys.argv[1:]:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    for number, command in enumerate(commands):
        if number and "horovod.torch" in sys.modules:
            # the next one may have other replicas
            sys.modules["horovod.torch"].shutdown()
        try:
            run(command)
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code:
                traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
        if len(commands) > 1 and os.environ.get("OMPI_COMM_WORLD_RANK") == "0":
            print(BETWEEN, flush=True)


if __name__ == "__main__":
    main()
