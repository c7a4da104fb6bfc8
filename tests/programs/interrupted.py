"""A run, of the trainer or of a script with a Session, to which rank 0 sends itself a signal before a round.

    interrupted.py ROUND SIGNAL PROGRAM.py ARGUMENTS... or -m MODULE ARGUMENTS...

A checkpoint under way is written before the next round, so that it is certain which one is complete then.
"""

import os
import signal
import sys

from helpers.moments import until, until_written
from helpers.rank import run

from parle_hpc import Session


def main():
    at, number, original = int(sys.argv[1]), getattr(signal, sys.argv[2]), Session.rounds

    def rounds(session, total):
        for round in original(session, total):
            until_written(session)
            if round == at and session.topology.world.Get_rank() == 0:
                os.kill(os.getpid(), number)
                until(lambda: session.preemption.asked)
            yield round

    Session.rounds = rounds
    run(sys.argv[3:])


if __name__ == "__main__":
    main()
