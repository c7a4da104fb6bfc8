"""A loop of one's own with a Session: python -m programs.session_loop OUT RESULT WAY [ROUND].

What each rank holds at the end goes into RESULT.RANK.npz. WAY: whole; in ROUND leaves (with break), waits (for a
signal), dies (of SIGKILL), raises (on the last rank); or nan, steps (once more on rank 1), torch (an optimiser of
torch's), unkept (an object that
cannot be saved).
"""

import os
import random
import signal
import sys

import numpy as np
import torch
from helpers.moments import until, until_written

from parle_hpc import Parle, Session, Topology

out, result, way, *at = sys.argv[1:]
at = int(at[0]) if at else None
L, STEPS = 4, 30  # seven rounds, and two steps more
torch.set_num_threads(1)
topology = Topology.split(replicas=2)
rank = topology.world.Get_rank()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
groups = {"comm": topology.cross, "replica": topology.replica}
optimizer = Parle(model.parameters(), lr=0.05, L=L, batches_per_epoch=10, **groups)
if way == "torch":
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.5)
for seed in (torch.manual_seed, np.random.seed, random.seed):
    seed(1 + topology.replica_index)


class Unkept:
    def state_dict(self):
        return {"function": Unkept}

    def load_state_dict(self, state):
        pass


keep = {"scheduler": scheduler, **({"thing": Unkept()} if way == "unkept" else {})}
with Session(
    out=out, topology=topology, model=model, optimizer=optimizer, keep=keep, every=2, check_every=2
) as session:
    for step in session.steps(STEPS):
        optimizer.zero_grad()
        noise = random.random() + np.random.rand()
        loss = (model(torch.rand(5, 3)) - noise).square().mean()
        loss.backward()
        topology.average_gradients(model.parameters())
        optimizer.step()
        if way == "steps" and step == 5 and rank == 1:
            optimizer.step()
        scheduler.step()
        session.loss(loss * (torch.nan if way == "nan" and step == 9 and rank == 0 else 1.0))
        if step % (2 * L) == 2 * L - 1:
            session.validated(step, {"val_loss": torch.tensor(float(step)), "val_other": np.float32(1)})
        # steps take no time: without this all is over before the first checkpoint is written
        until_written(session)
        if at is not None and step == L * at + 1:
            if way == "leaves":
                break
            if way == "waits" and rank == topology.n * topology.m - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                until(lambda: session.preemption.asked)
            if way == "dies" and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "raises" and rank == topology.n * topology.m - 1:
                raise KeyError("only here")
with optimizer.at_reference():
    reference = torch.cat([p.detach().flatten() for p in model.parameters()])
np.savez(f"{result}.{rank}.npz", reference=reference, live=optimizer.x, lr=optimizer.param_groups[0]["lr"])
