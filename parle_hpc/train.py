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

from .cluster.leftovers import launched
from .cluster.placement import placement
from .cluster.signals import Preemption
from .cluster.waiting import PATIENCE, START_UP, bounded, leave, where
from .errors import BAD_INPUT, DIVERGED, SAVED, BadInput, Diverged, Drifted, Saved, say
from .settings import load, settle

GOODBYE = 30.0  # seconds for the end of MPI, after which a saved run ends all the same


def main(arguments=None):
    rank = placement(os.environ).rank
    try:
        settings = load(sys.argv[1:] if arguments is None else arguments)
        settle(settings, launched(os.environ).size)
    except BadInput as error:
        leave(error, BAD_INPUT)

    preemption = Preemption(rank)
    # torch takes seconds to load: not before the settings are known to be right
    from .cluster.topology import Topology
    from .training.folder import output
    from .training.setup import set_up

    # Horovod must not lose patience before the watchdog does
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(max(PATIENCE, settings.run.patience))))
    try:
        topology = Topology.split(replicas=settings.replicas, patience=max(START_UP, settings.run.patience))
        with output(settings, topology) as folder:
            run(set_up(settings, topology, preemption, folder))
        preemption.over()
    except BadInput as error:
        leave(error, BAD_INPUT)
    except Diverged as error:
        leave(error, DIVERGED)
    except Saved as saved:
        end_saved(topology, rank, str(saved))
    except Drifted as error:
        leave(error, 1, speaks=topology.place == 0)
    except (TimeoutError, OSError) as error:
        say(f"{where(rank)}: {error}")
        os._exit(1)
    except BaseException:
        # the other ranks may be waiting for this one: os._exit makes the launcher end them too
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def run(parts):
    """Train, unless nothing is left to do."""
    from .training import loop

    if not parts.finished:
        loop.train(parts)
        return
    more = "max_rounds" if parts.settings.schedule.max_rounds == parts.rounds else "epochs"
    parts.metrics.say(
        f"{parts.folder} holds a run that is finished: {parts.rounds} rounds; more --schedule.{more} go on with it, "
        "another --out starts anew"
    )
    parts.metrics.close()
    parts.watchdog.close()


def end_saved(topology, rank, message):
    """End all ranks, rank 0 with status SAVED and last of all: launchers kill the others once one status is not 0."""
    sys.stdout.flush()
    with bounded(GOODBYE, "the end of MPI", rank, message, SAVED):
        topology.close()
    if rank == 0:
        say(message)
        time.sleep(1.0)
    os._exit(SAVED if rank == 0 else 0)


if __name__ == "__main__":
    main()
