"""Who takes part in race.py, and how one of them trains on this rank."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers.namespaces import link_bytes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import MultiStepLR

from parle_hpc.algorithms.diloco import DiLoCo
from parle_hpc.algorithms.elastic_sgd import ElasticSGD
from parle_hpc.algorithms.entropy_sgd import EntropySGD
from parle_hpc.algorithms.local_sgd import LocalSGD
from parle_hpc.algorithms.parle import Parle
from parle_hpc.algorithms.sgd import SGD
from parle_hpc.data.loader import Loader
from parle_hpc.data.split import MiniBatches
from parle_hpc.training.computing import Computing, tried
from parle_hpc.training.loop import backward
from parle_hpc.training.setup import make_model
from parle_hpc.training.validation import Validation

L, STATISTICS = 25, 64
# where the rate drops by 10, as fractions of the run: those of recipe lenet_mnist, as paper/experiments.py shortens it
PASSES, EPOCHS = (0.3, 0.6, 0.9), (2 / 3,)
CPU = torch.device("cpu")


class Kind(NamedTuple):
    """What a racer is: `make` gives its optimiser, `drops` are its rate's.

    over: what averages the gradients of a mini-batch that all ranks share; None where each has a replica of its own.
    hides: whether a reduction travels while the next mini-batches are computed.
    """

    make: Callable
    drops: tuple
    over: str | None = None
    hides: bool = False


def sgd(params, common, B, comm):
    return SGD(params, **common)


def parle(params, common, B, comm):
    return Parle(params, L=L, batches_per_epoch=B, comm=comm, **common)


def entropy_sgd(params, common, B, comm):
    return EntropySGD(params, L=L, batches_per_epoch=B, **common)


def elastic_sgd(params, common, B, comm):
    # on runs this short scoping cost it a quarter of its error (docs/benchmarks.md)
    return ElasticSGD(params, batches_per_epoch=B, scoping=False, comm=comm, **common)


def diloco(params, common, B, comm, overlap=False):
    # outer rate and momentum are those of its paper, 0.7 and 0.9
    return DiLoCo(params, L=L, overlap=overlap, comm=comm, **common)


def local_sgd(params, common, B, comm):
    return LocalSGD(params, L=L, comm=comm, **common)


# All start with the recipe's rate of 0.1, best of 0.1, 0.05 and 0.02 for Elastic-SGD too; --lr for another. The paper
# counts Parle and Entropy-SGD in epochs, where eta' stays at 0.1, the others in passes, where the rate itself drops.
RACERS = {
    "sgd_horovod": Kind(sgd, PASSES, over="horovod"),
    "sgd_ddp": Kind(sgd, PASSES, over="ddp"),
    "parle": Kind(parle, EPOCHS, hides=True),
    "entropy_sgd": Kind(entropy_sgd, EPOCHS, over="horovod"),
    "elastic_sgd": Kind(elastic_sgd, PASSES, hides=True),
    "diloco": Kind(diloco, PASSES),
    "diloco_overlap": Kind(partial(diloco, overlap=True), PASSES, hides=True),
    "local_sgd": Kind(local_sgd, PASSES),
}


class Field(NamedTuple):
    """What all racers share: the recipe's Settings, its Sources, and the ranks as replicas and as one team."""

    settings: Any
    sources: Any
    topology: Any
    team: Any


class Racer:
    """One algorithm on this rank: its network, optimiser and mini-batches, and what they have cost so far.

    rounds: of 25 mini-batches, that it has. lr: its first learning rate.
    """

    def __init__(self, name, field, rounds, lr):
        settings, sources, topology, self._team = field
        self.name, self.kind, self.rounds = name, RACERS[name], rounds
        self.round, self.seconds, self.bytes = 0, 0.0, 0
        a, size, seat = settings.algorithm, settings.data.batch_size, self._team if self.kind.over else topology
        place = {"replica": seat.replica_index, "place": seat.place, "m": seat.m, "seed": settings.run.seed}
        batches = MiniBatches(np.arange(len(sources.train)), -(-size // seat.m) * seat.m, **place)
        model = make_model(settings, sources.train, topology, CPU)
        self._params = list(model.parameters())
        common = {"lr": lr, "momentum": a.momentum, "weight_decay": a.weight_decay}
        self._optimizer = self.kind.make(self._params, common, batches.B, topology.cross)
        drops = [round(drop * rounds * L) for drop in self.kind.drops]
        self._schedule = MultiStepLR(self._optimizer, drops, gamma=0.1)
        # the statistics of BatchNorm are computed anew, so DDP need not send them
        net = DistributedDataParallel(model, broadcast_buffers=False) if self.kind.over == "ddp" else model
        task, self._step, self._waiting = sources.task, 0, False
        self._loader, self._computing = Loader(sources.train, batches, CPU), Computing(task, net, CPU)
        self._validation = Validation(
            Computing(task, model, CPU), sources, size, at_once=task.evaluation_batch, comm=topology.world
        )
        model.train()
        with tried(model, CPU):
            backward(self._computing, self._loader(0))  # what a first mini-batch takes longer is on nobody's clock
        self._random = torch.get_rng_state()

    def turn(self, world):
        """A turn on the clock; `world` has all ranks. It has random numbers of its own, whoever takes part."""
        torch.set_rng_state(self._random)
        if self.kind.over == "horovod":
            self._team.average_gradients(self._params)  # Horovod's first one after its start takes longer
        world.Barrier()
        started, before = time.perf_counter(), link_bytes()
        self._train()
        self.seconds += max(world.allgather(time.perf_counter() - started))
        # by now what a rank has sent has arrived
        self.bytes += sum(world.allgather(link_bytes() - before))
        self._random = torch.get_rng_state()

    def _train(self):
        """25 mini-batches, until nothing is in flight."""
        for _ in range(L):
            if self._waiting:
                self._update()
            for p in self._params:
                p.grad = None
            backward(self._computing, self._loader(self._step))
            self._step, self._waiting = self._step + 1, True
        self.round += 1
        if self.round == self.rounds or not self.kind.hides:
            self._update()
        self._optimizer.finish()

    def _update(self):
        if self.kind.over == "horovod":
            self._team.average_gradients(self._params)
        self._optimizer.step()
        self._schedule.step()
        self._waiting = False

    def error(self):
        """Of the reference, on all test images, in percent."""
        with self._optimizer.at_reference():
            return self._validation.validate(STATISTICS, train=False)[0].first[1]
