"""Does this machine, launcher and build work? Says what there is, and line by line what to change.

    python -m parle_hpc.doctor                                  # one process
    srun --mpi=pmix python -m parle_hpc.doctor --out $SCRATCH   # as the job will be started, and where it will write
    mpirun -np 4 python -m parle_hpc.doctor --replicas 2

Exit status 0: all is well; 1: something must change; 2: the command line is wrong. No step waits longer than --wait
seconds: what does not answer by then is named in one line, with status 1.
"""

import argparse
import os
import socket
import sys
import time

from .cluster.diagnosis.examination import OTHERS, examine, load
from .cluster.diagnosis.supervise import LAST, supervised
from .cluster.diagnosis.tables import conclude
from .cluster.leftovers import is_left_over
from .cluster.placement import placement
from .cluster.waiting import OTHERS_WAIT, leave
from .errors import BAD_INPUT, BadInput, Parser, say
from .paths import as_path
from .settings import default_replicas


def options(arguments):
    """The command line. Raises BadInput."""
    parser = Parser("python -m parle_hpc.doctor", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--out", type=as_path, default=".", metavar="DIR", help="folder for the runs (default: the current one)"
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="as for parle_hpc.train, and with its default")
    parser.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="bound of a step (default: 120)")
    given = parser.parse_args(arguments)
    if not given.wait > 0:
        raise BadInput(f"--wait {given.wait:g}: must be more than 0 seconds")
    return given


def main(arguments=None):
    here = placement(os.environ)
    try:
        given = options(sys.argv[1:] if arguments is None else arguments)
    except BadInput as error:
        leave(error, BAD_INPUT)
    if given.replicas is None:
        given.replicas = default_replicas("parle", here.size)
    step = supervised(here.rank)
    try:
        loaded = load(given, here, step)
    except BadInput as error:
        give_up(error, here, step)
        if here.local_rank == 0:
            # the node of this rank alone has the fault, and rank 0 waits for it in vain
            say(f"rank {here.rank} on {socket.gethostname()}: {error}")
        os._exit(1)
    # torch takes seconds to load, and was loaded under supervision
    from .coupling.choice import reference_over

    try:
        found = examine(*loaded, given, here, step, reference_over)
    except BadInput as error:
        give_up(error, here, step)
        os._exit(1)
    step(LAST, given.wait, OTHERS)
    sys.exit(bool(found))


def give_up(error, here, step):
    """Rank 0 says what is wrong and leaves; the others give it time, since a launcher ends the job with the first."""
    step(LAST, 2 * OTHERS_WAIT, OTHERS)
    speaks = here.rank == 0 if error.speaks is None else error.speaks
    if not speaks:
        time.sleep(OTHERS_WAIT)
    if speaks or is_left_over(os.environ, here):
        conclude([str(error)], here.size)
        os._exit(1)


if __name__ == "__main__":
    main()
