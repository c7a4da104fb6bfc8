"""A training loop of your own, here over scikit-learn's digits, with Parle and a Session.

    mpirun -np 4 python own_loop.py runs/mine       # 2 replicas of 2 ranks; killed, the same command goes on

Every rank runs all of these lines, equally often.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from parle_hpc import Parle, Session, Topology, batchnorm_of_reference

epochs = 40
topology = Topology.split(replicas=2)  # starts MPI and Horovod: no hvd.init() before it
device = topology.device("auto")
torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
data, test = TensorDataset(images[:1400], labels[:1400]), (images[1400:].to(device), labels[1400:].to(device))
features = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
model = nn.Sequential(*features, nn.Dropout(0.2), nn.Linear(256, 10)).to(device)
topology.broadcast([*model.parameters(), *model.buffers()])
torch.manual_seed(1 + topology.world.Get_rank())  # of dropout, on each rank another

# a replica sees all of the data in an order of its own, each of its m ranks another part
sampler = DistributedSampler(data, num_replicas=topology.m, rank=topology.place, seed=topology.replica_index)
loader = DataLoader(data, batch_size=128 // topology.m, sampler=sampler, drop_last=True)
steps = epochs * len(loader)
groups = {"comm": topology.cross, "replica": topology.replica}
optimizer = Parle(model.parameters(), lr=0.1, batches_per_epoch=len(loader), **groups)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def validate(step):
    """The error of the reference on the digits that nobody trains on, in percent."""
    with optimizer.at_reference(), batchnorm_of_reference(model, loader, topology), torch.no_grad():
        error = 100 * (model(test[0]).argmax(1) != test[1]).float().mean().item()
        session.keep_reference()  # OUT/reference.pt, the last one of all
    session.validated(step, {"val_error": error})
    session.say(f"epoch {(step + 1) // len(loader)}: validation error {error:.2f} %")


keep = {"scheduler": scheduler}
with Session(out=sys.argv[1], topology=topology, model=model, optimizer=optimizer, keep=keep, every=5) as session:
    for step, (x, y) in session.batches(loader, epochs):
        optimizer.zero_grad()
        loss = cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        topology.average_gradients(model.parameters())
        optimizer.step()
        scheduler.step()
        session.loss(loss)
        if (step + 1) % (10 * len(loader)) == 0 and step + 1 < steps:
            validate(step)
    validate(steps - 1)
