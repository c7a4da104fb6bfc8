"""20 steps of the real loop in float64, with or without BatchNorm; the live weights into OUT.npy.

twenty_steps.py identity|batch OUT SETTINGS...
"""

import sys

import numpy as np
import torch

from parle_hpc import Topology, models
from parle_hpc.settings import load
from parle_hpc.training import loop
from parle_hpc.training.session import Session
from parle_hpc.training.setup import set_up

norm, out, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]


class Double(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.double()

    def forward(self, images):
        return self.model(images.double())


original = models.build


def build(*given, **options):
    model = original(*given, **options)
    if norm == "identity":
        for name, module in model.named_children():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                setattr(model, name, torch.nn.Identity())
    return Double(model)


models.build = build
settings = load(["--out", out, *arguments])
topology = Topology.split(replicas=1)
job = set_up(settings, Session(out=settings.out, topology=topology))
models.build = original
if settings.algorithm.name in ("sgd", "elastic_sgd"):
    job.optimizer.round_length = 20
job.computing.model.train()
while job.tally.step < 20:
    loop.one_round(job)
job.session.watchdog.close()
assert job.tally.step == 20
if topology.world.Get_rank() == 0:
    np.save(f"{out}.npy", torch.cat([p.detach().flatten() for p in job.params]).numpy())
