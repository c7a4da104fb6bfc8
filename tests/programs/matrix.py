"""A script of a user's that calls everything, and on the last rank leaves a call out, makes it twice, or too early.

python -m programs.matrix FAULT NUMBER REPLICAS FOLDER     FAULT: none, missing, twice, early, of the NUMBERth call.
Each rank writes what it holds at the end into FOLDER.
"""

import json
import sys
from pathlib import Path

import torch

from parle_hpc import Parle, Topology, batchnorm_of_reference

fault, number, replicas, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
torch.set_num_threads(1)
t = Topology.split(replicas=replicas)
torch.manual_seed(t.world.Get_rank())
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
params, found = list(model.parameters()), {}
drawn = torch.Generator().manual_seed(t.world.Get_rank())
batches = [torch.randn(8, 4, generator=drawn) for _ in range(6)]


def broadcast():
    t.broadcast([*params, *model.buffers()])


def make():
    settings = {"L": 3, "batches_per_epoch": 6, "comm": t.cross, "replica": t.replica}
    found["optimizer"] = Parle(params, lr=0.05, **settings)


def backward():
    found["optimizer"].zero_grad()
    model(batches[found["optimizer"].steps % 6]).square().mean().backward()


def average():
    t.average_gradients(params)


def step():
    found["optimizer"].step()


def at_reference():
    with found["optimizer"].at_reference(), batchnorm_of_reference(model, batches, t):
        pass


def batchnorm():
    with batchnorm_of_reference(model, batches, t):
        pass


def state_dict():
    found["state"] = found["optimizer"].state_dict()


def load_state_dict():
    found["optimizer"].load_state_dict(found["state"])


def finish():
    found["optimizer"].finish()


def together():
    t.together(int, 3)


MINI_BATCH = [backward, average, step]
CALLS = [broadcast, make, *MINI_BATCH * 3, at_reference, *MINI_BATCH * 2, state_dict, load_state_dict, *MINI_BATCH * 2]
CALLS += [together, batchnorm, finish, at_reference]
# where a fault is worth planting: in the first round, at its coupling and in the second one, and the rest
FAULTS = [CALLS.index(broadcast), 2, 3, 4, 6, 7, 9, 10, 11, 13, 14, *range(18, 20), *range(26, 30)]

if __name__ == "__main__":
    calls = list(CALLS)
    if fault != "none" and t.world.Get_rank() == t.n * t.m - 1:
        at = FAULTS[number]
        if fault == "missing":
            del calls[at]
        elif fault == "twice":
            calls.insert(at, calls[at])
        else:
            before = max(at, 1) - 1
            calls[before : before + 2] = calls[before + 1], calls[before]
    for call in calls:
        call()
    o = found["optimizer"]
    mine = {"x": o.x.tolist(), "y": [p.tolist() for p in params], "steps": o.steps}
    with o.at_reference():
        mine["reference"] = [p.tolist() for p in params]
    (folder / f"{t.world.Get_rank()}.json").write_text(json.dumps(mine))
    t.close()
