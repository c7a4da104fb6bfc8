"""The training program, in which mini-batches take a stated time by the clock of the pace. paced.py SECONDS SETTINGS...

SECONDS: of a mini-batch, one for each rank, as JSON. Each rank's steps after each round go into OUT/steps.RANK.json.
"""

import json
import sys
from pathlib import Path

from parle_hpc import train
from parle_hpc.algorithms import pace
from parle_hpc.training import loop

seconds, now = json.loads(sys.argv[1]), 0.0
mini_batch, one_round = loop.mini_batch, loop.one_round


def timed(parts):
    global now
    now += seconds[parts.topology.world.Get_rank()]
    mini_batch(parts)


def noted(parts):
    one_round(parts)
    path = Path(parts.session.folder) / f"steps.{parts.topology.world.Get_rank()}.json"
    done = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*done, parts.optimizer.steps]))


pace.moment = lambda device: now
loop.mini_batch, loop.one_round = timed, noted
train.main(sys.argv[2:])
loop.mini_batch, loop.one_round = mini_batch, one_round  # a run that goes on may follow
