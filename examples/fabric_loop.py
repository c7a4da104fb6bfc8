"""A loop of Lightning Fabric: Fabric has device and precision, Topology, Parle and Session all between ranks.

mpirun -np 4 python fabric_loop.py runs/mine       # 2 replicas of 2 ranks; needs pip install lightning
"""

import sys

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from parle_hpc import Parle, Session, Topology, batchnorm_of_reference

epochs = 30
topology = Topology.split(replicas=2)
device = topology.device("auto")
# to Fabric each rank is alone, whatever launched it: its own strategies would average gradients over all of them
devices = 1 if device.type == "cpu" else [device.index]
fabric = Fabric(accelerator=device.type, devices=devices, precision="bf16-mixed", plugins=LightningEnvironment())
torch.manual_seed(0)

x = torch.linspace(-1, 1, 2048)[:, None]
data = TensorDataset(x, torch.sin(3 * x))
model = fabric.setup_module(nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)))
topology.broadcast(model.parameters())

sampler = DistributedSampler(data, num_replicas=topology.m, rank=topology.place, seed=topology.replica_index)
loader = DataLoader(data, batch_size=128 // topology.m, sampler=sampler, drop_last=True)
groups = {"comm": topology.cross, "replica": topology.replica}
# not fabric.setup_optimizers: a Session knows Parle itself
optimizer = Parle(model.parameters(), lr=0.02, batches_per_epoch=len(loader), **groups)

with Session(out=sys.argv[1], topology=topology, model=model, optimizer=optimizer, every=5) as session:
    for _, batch in session.batches(loader, epochs):
        inputs, targets = fabric.to_device(batch)
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), targets)
        fabric.backward(loss)
        topology.average_gradients(model.parameters())
        optimizer.step()
        session.loss(loss)
    with optimizer.at_reference(), batchnorm_of_reference(model, loader, topology), torch.no_grad():
        inputs, targets = fabric.to_device(data[:])
        error = mse_loss(model(inputs), targets).item()
        session.keep_reference()
    session.validated(epochs * len(loader) - 1, {"val_mse": error})
    session.say(f"mean squared error of the reference {error:.4f}")
