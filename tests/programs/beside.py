"""The training program, whose round ROUND begins once a member has come to the mailbox. beside.py ROUND MEMBER SETTINGS

MEMBER: its number.
"""

import sys
from pathlib import Path

from helpers.moments import until

from parle_hpc import train
from parle_hpc.coupling.mailbox import heartbeat
from parle_hpc.training import loop

at, member = map(int, sys.argv[1:3])
original = loop.one_round


def waiting(parts):
    if parts.tally.step // parts.optimizer.round_length == at:
        folder = Path(parts.settings.coupling.folder)
        until(lambda: heartbeat(folder, member))
    original(parts)


loop.one_round = waiting
train.main(sys.argv[3:])
