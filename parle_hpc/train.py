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
import traceback

from .cluster.leftovers import launched
from .cluster.placement import placement
from .cluster.signals import preemption
from .cluster.waiting import PATIENCE, START_UP, leave, where
from .errors import BAD_INPUT, BadInput, say
from .settings import load, settle


def main(arguments=None):
    rank = placement(os.environ).rank
    try:
        settings = load(sys.argv[1:] if arguments is None else arguments)
        settle(settings, launched(os.environ).size)
    except BadInput as error:
        leave(error, BAD_INPUT)

    preemption(rank)
    # torch takes seconds to load: not before the settings are known to be right
    from .cluster.agreement import by_first
    from .cluster.topology import Topology
    from .training.folder import choose
    from .training.session import Session
    from .training.setup import set_up

    r = settings.run
    # Horovod must not lose patience before the watchdog does
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(max(PATIENCE, r.patience))))
    try:
        topology = Topology.split(replicas=settings.replicas, patience=max(START_UP, r.patience))
        with Session(
            out=by_first(topology, choose, settings),
            topology=topology,
            resume=settings.resume,
            every=r.checkpoint_every,
            minutes=r.checkpoint_minutes,
            checkpoints=r.keep,
            check_every=r.check_every,
            patience=r.patience,
            grace=r.grace,
            seed=r.seed,
        ) as session:
            run(set_up(settings, session))
    except BadInput as error:
        leave(error, BAD_INPUT)
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
    parts.session.say(
        f"{parts.session.folder} holds a run that is finished: {parts.rounds} rounds; more --schedule.{more} go on "
        "with it, another --out starts anew"
    )


if __name__ == "__main__":
    main()
