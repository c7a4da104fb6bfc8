"""The training program with a fault in it. faulty.py RANK ROUND sleeps|drifts|nan SETTINGS..."""

import sys
import time

import torch

from parle_hpc import train
from parle_hpc.training import loop

rank, at, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
original = loop.one_round


def faulty(parts, round):
    mine = parts.topology.world.Get_rank() == rank
    if round == at and mine and kind == "sleeps":
        time.sleep(10_000)
    losses = original(parts, round)
    if round == at and mine and kind == "drifts":
        with torch.no_grad():
            parts.params[0].view(-1)[0].add_(1e-6)
    if round == at and mine and kind == "nan":
        with torch.no_grad():
            parts.params[0].fill_(torch.nan)
    return losses


loop.one_round = faulty
train.main(sys.argv[4:])
