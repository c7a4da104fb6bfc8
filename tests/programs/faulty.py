"""The training program with a fault in it. faulty.py RANK ROUND sleeps|drifts|nan SETTINGS..."""

import sys
import time

import torch

from parle_hpc import train
from parle_hpc.run import Run

rank, at, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
original = Run._round


def faulty(self, round):
    if round == at and self.rank == rank and kind == "sleeps":
        time.sleep(10_000)
    losses = original(self, round)
    if round == at and self.rank == rank and kind == "drifts":
        with torch.no_grad():
            self.params[0].view(-1)[0].add_(1e-6)
    if round == at and self.rank == rank and kind == "nan":
        with torch.no_grad():
            self.params[0].fill_(torch.nan)
    return losses


Run._round = faulty
train.main(sys.argv[4:])
