"""A process that loads mini-batches in two workers or a thread, and ends as its first argument says; one is a rank."""

import os
import signal
import sys
import threading
import time

import numpy as np
import torch
from helpers.loading import Drawing, FirstOf, InOrder, Logging, Noisy, Source, Stuck

from parle_hpc.data.ahead import Ahead
from parle_hpc.data.loader import Loader
from parle_hpc.data.split import MiniBatches
from parle_hpc.data.workers import ASKING, Workers


def loader_of(source):
    """(A Loader, the Ahead that it has)."""
    ahead = Ahead(source, 2, False)
    return Loader(source, InOrder(), torch.device("cpu"), ahead=ahead), ahead


def stuck(file):
    """An Ahead whose one worker has more to send than a pipe holds, and whose other one never answers again."""
    loader, ahead = loader_of(FirstOf(Stuck(file)))
    loader(0)
    while not os.path.exists(file):
        time.sleep(0.01)
    return ahead


def under_signals():
    """Every signal that launchers send comes again and again to all processes of the group, from the start."""
    heard, over = set(), threading.Event()
    for number in ASKING:
        signal.signal(number, lambda number, _: heard.add(number))

    def send():
        while not over.wait(0.02):
            for number in ASKING:
                os.killpg(0, number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    loader, ahead = loader_of(Source(Drawing()))
    found = [loader(step)[0][1]["index"].item() for step in range(300)]
    over.set()
    thread.join()
    ahead.close()
    assert found == list(range(300))
    assert heard == set(ASKING)


def as_a_rank(folder):
    """Workers of ranks have the launcher's variables, and nothing of MPI."""
    from parle_hpc.cluster.topology import Topology

    topology = Topology.split(replicas=1)
    mine = MiniBatches(np.arange(40), 12, seed=0, replica=0, place=topology.place, m=topology.m)
    logs = [f"{folder}/{kind}{topology.place}" for kind in ("workers", "alone")]
    sources = [Noisy(Logging(log)) for log in logs]
    aheads = Ahead(sources[0], 2, False), None
    some, alone = (
        Loader(source, mine, torch.device("cpu"), ahead=ahead) for source, ahead in zip(sources, aheads, strict=True)
    )
    for step in range(5):
        torch.testing.assert_close(some(step), alone(step), rtol=0, atol=0)
    topology.world.Barrier()
    aheads[0].close()
    with open(logs[0]) as file:
        assert {line.split()[2] for line in file} == {"[]"}
    topology.close()
    print("the same")


class Endless:
    """The second sample never comes."""

    def __getitem__(self, index):
        if index:
            time.sleep(10_000)
        return index


def threaded():
    """A thread fetches what never comes."""
    loader = Loader(FirstOf(Endless()), InOrder(), torch.device("cpu"), ahead=Ahead(FirstOf(Endless()), 0, False))
    loader(0)
    raise KeyError("raised")


if __name__ == "__main__":
    way = sys.argv[1]
    if way == "under_signals":
        under_signals()
    elif way == "as_a_rank":
        as_a_rank(sys.argv[2])
    elif way == "threaded":
        threaded()
    elif way == "starts":
        workers = Workers(FirstOf(Stuck(sys.argv[2])), iter([]), 2, False)
        print("stuck", flush=True)
        os._exit(5)
    else:
        ahead = stuck(sys.argv[2])
        print("stuck", flush=True)
        if way == "waits":
            time.sleep(10_000)
        elif way == "exits":
            os._exit(3)
        elif way == "closes":
            ahead.close()
            os._exit(4)
        elif way == "raises":
            raise KeyError("raised")
