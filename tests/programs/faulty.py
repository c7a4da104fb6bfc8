"""The training program with a fault in one rank. faulty.py RANK ROUND sleeps|stops|dies|drifts|nan|listens SETTINGS...

listens: the round begins once a signal has come. A checkpoint under way is written before the next round, so that it is
certain which one is complete at the fault.
"""

import os
import signal
import sys
import time

import torch
from helpers.moments import until, until_written

from parle_hpc import train
from parle_hpc.training import loop

rank, at, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
original = loop.one_round


def faulty(parts):
    session, round = parts.session, parts.tally.step // parts.optimizer.round_length
    until_written(session)
    if round != at or parts.topology.world.Get_rank() != rank:
        return original(parts)
    if kind == "sleeps":
        time.sleep(10_000)
    if kind == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "listens":
        until(lambda: session.preemption.asked)
    original(parts)
    with torch.no_grad():
        if kind == "drifts":
            parts.params[0].view(-1)[0].add_(1e-6)
        if kind == "nan":
            parts.params[0].fill_(torch.nan)


loop.one_round = faulty
train.main(sys.argv[4:])
