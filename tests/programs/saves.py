"""The trainer, which waits for each of its checkpoints, so that none is left out where the disk is slow."""

import sys

from parle_hpc import train
from parle_hpc.training.saving import Saving

start = Saving.start


def start_and_wait(self, round, score):
    start(self, round, score)
    self.settle()


Saving.start = start_and_wait
train.main(sys.argv[1:])
