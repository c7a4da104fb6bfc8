"""What waits for the device in the mini-batches of a round, but for its last.

waits.py cpu|cuda '[["--recipe", ...], ...]'

On a GPU torch itself raises where something waits; on a CPU, taken for a device, the calls that would are counted.
"""

import json
import os
import sys
import tempfile
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import torch
from helpers.syncs import Syncs

from parle_hpc import Topology
from parle_hpc.algorithms.layout import Layout
from parle_hpc.cluster.agreement import by_first
from parle_hpc.settings import load, settle
from parle_hpc.training.loop import mini_batch
from parle_hpc.training.session import Session
from parle_hpc.training.setup import set_up


@contextmanager
def refused():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(given, device):
    """({call: how often} in the second and third round, the Topology)."""
    settings = load([*given, "--run.device", device])
    settle(settings, int(os.environ["OMPI_COMM_WORLD_SIZE"]))
    topology = Topology.split(replicas=settings.replicas)
    out = by_first(topology, tempfile.mkdtemp)
    counted = Syncs()
    with Session(out=Path(out) / "run", topology=topology) as session:
        p = set_up(settings, session)
        p.computing.model.train()
        for round in session.rounds(3):
            # the first makes states, and takes up what it finds
            with nullcontext() if not round else refused() if device == "cuda" else counted:
                for _ in range(p.optimizer.round_length - 1):
                    mini_batch(p)
            mini_batch(p)
    with closing(p.ahead) if p.ahead else nullcontext():
        return dict(counted.calls), topology


if __name__ == "__main__":
    Layout.on_cpu = False
    found = [waits(given, sys.argv[1]) for given in json.loads(sys.argv[2])]
    if found[-1][1].world.Get_rank() == 0:
        print(json.dumps([calls for calls, _ in found]))
