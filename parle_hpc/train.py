"""Train a network with Parle, or with one of its relatives.

    python -m parle_hpc.train                                   # one process
    horovodrun -np 12 python -m parle_hpc.train                 # 3 replicas of 4 ranks
    mpirun -np 3 python -m parle_hpc.train --recipe lenet_mnist --replicas 3
    srun --mpi=pmix python -m parle_hpc.train --recipe lenet_mnist

Without arguments it trains the recipe lenet_digits. --help explains every setting. Exit status 2: something in the
input is wrong; 3: the loss became NaN or infinite; 85: a signal came, the state is saved, the same command goes on.
"""

import os
import sys
import time
import traceback

from . import config
from .failure import (
    BAD_INPUT,
    DIVERGED,
    PATIENCE,
    SAVED,
    BadInput,
    Diverged,
    Drifted,
    Saved,
    bounded,
    leave,
    say,
    where,
)
from .placement import placement
from .preempt import Preemption

GOODBYE = 30.0  # seconds for the end of MPI, after which a saved run ends all the same


def main(arguments=None):
    rank = placement(os.environ).rank
    try:
        settings = config.load(sys.argv[1:] if arguments is None else arguments)
        settle(settings, placement(os.environ).size)
    except BadInput as error:
        leave(str(error), BAD_INPUT)

    preemption = Preemption(rank)
    # torch takes seconds to load: not before the settings are known to be right
    from .run import Run
    from .topology import Topology

    # Horovod must not lose patience before the watchdog does
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(max(PATIENCE, settings.run.patience))))
    try:
        topology = Topology.split(replicas=settings.replicas)
        run = Run(settings, topology, preemption)
        if run.finished:
            run.tell_finished()
        else:
            run.train()
        preemption.over()
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    except Diverged as error:
        leave(str(error), DIVERGED)
    except Saved as saved:
        end_saved(topology, rank, str(saved))
    except Drifted as error:
        leave(str(error), 1, speaks=topology.place == 0)
    except (TimeoutError, OSError) as error:
        say(f"{where(rank)}: {error}")
        os._exit(1)
    except BaseException:
        # the other ranks may be waiting for this one: os._exit makes the launcher end them too
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def end_saved(topology, rank, message):
    """End all ranks, rank 0 with status SAVED and last of all: launchers kill the others once one status is not 0."""
    sys.stdout.flush()
    with bounded(GOODBYE, "the end of MPI", rank):
        topology.close()
    if rank == 0:
        say(message)
        time.sleep(1.0)
    os._exit(SAVED if rank == 0 else 0)


def settle(settings, size):
    """Settle the number of replicas for `size` ranks. Raises BadInput for settings that exclude each other."""
    name = settings.algorithm.name
    if settings.replicas is None:
        settings.replicas = config.default_replicas(name, size)
    if name in config.DATA_PARALLEL and settings.replicas > 1:
        raise BadInput(f"--replicas {settings.replicas}: {name} is data-parallel over all ranks; leave --replicas out")
    if name != "parle" and settings.algorithm.inside == "workers":
        raise BadInput(f"--algorithm.inside workers: belongs to parle, not to {name}; leave it out")
    if name != "parle" and settings.algorithm.payload != "full":
        raise BadInput(f"--algorithm.payload bfloat16: belongs to parle, not to {name}; leave it out")


if __name__ == "__main__":
    main()
