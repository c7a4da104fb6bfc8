"""A run on this rank, put together and checked on all ranks: everything that the loop needs, as one frozen object."""

import math
import os
import platform
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..algorithms.elastic_sgd import ElasticSGD
from ..algorithms.entropy_sgd import EntropySGD
from ..algorithms.inners import INNERS
from ..algorithms.parle import Parle
from ..algorithms.sgd import SGD
from ..checkpoints import resume
from ..checkpoints.saver import Saver
from ..cluster.agreement import by_first, from_all
from ..cluster.signals import Preemption
from ..cluster.topology import Topology
from ..cluster.waiting import Watchdog
from ..data.advice import default_path
from ..data.loader import Loader
from ..data.prepare import prepare
from ..data.split import MiniBatches, seen_by
from ..data.store import open_dataset
from ..errors import BadInput
from ..settings import DATA_PARALLEL, ROUNDS, Settings
from . import folder
from .memory import keep_freed
from .metrics import Metrics
from .network import build_model
from .saving import Saving
from .schedule import Schedule
from .summary import headline
from .tally import Tally
from .trace import trace_of
from .validation import Validation
from .validator import Validator


@dataclass(frozen=True)
class Parts:
    """What a run consists of.

    Attributes:
        settings, topology, preemption, watchdog: as given, and the Watchdog that they start.
        folder: output folder, one for all ranks.
        loader: Loader of this rank's mini-batches.
        B: mini-batches in a pass.
        model, params, optimizer, scheduler: the network, its parameters, and what moves them.
        rounds, first_round: how many the run has, and the one that it begins with.
        finished: whether nothing is left to do.
        hosts: names of the ranks' hosts.
        tally, metrics, saving, validator: what counts, tells, saves and validates.
        trace: context manager of a round, which may write a trace of it.
        news: lines to say at the start.
    """

    settings: Settings
    topology: Topology
    preemption: Preemption
    watchdog: Watchdog
    folder: Path
    loader: Loader
    B: int
    model: torch.nn.Module
    params: list
    optimizer: Any
    scheduler: Any
    rounds: int
    first_round: int
    finished: bool
    hosts: list
    tally: Tally
    metrics: Metrics
    saving: Saving
    validator: Validator
    trace: Callable[[int], AbstractContextManager]
    news: list


def set_up(settings, topology, preemption, out):
    """The Parts of a run. Collective over all ranks.

    Args:
        settings: Settings.
        topology: Topology.
        preemption: Preemption, which tells of signals.
        out: output folder, which this run holds.

    Raises BadInput, on all ranks, where something in the settings, the data or the output folder is wrong.
    """
    t, rank = topology, topology.world.Get_rank()
    preemption.grace = settings.run.grace
    watchdog = Watchdog(rank, settings.run.patience)
    stored, news = folder.find_checkpoint(settings, out, t)
    device = t.together(t.device, settings.run.device)
    if device.type == "cpu":
        keep_freed()
    data = open_data(settings, t, out)
    seen, batches = share(settings, data, t)
    model = make_model(settings, data, t, device)
    params = list(model.parameters())
    optimizer = make_optimizer(settings, params, t, batches.B)
    scheduler, rounds = make_schedule(settings, optimizer, batches.B)
    metrics = Metrics(out if rank == 0 else None, rounds, batches.B)
    saver, tally = Saver(out, t.world, settings.run.patience, settings.run.keep), Tally()
    images = [len(data.train), len(data.test)]
    first_round, finished = where_it_begins(stored, rounds, out)
    if stored is not None and not finished:
        folder.check_data(stored, images, settings.data)
        saver.last = stored.manifest["round"]
        news += go_on(stored, rounds, optimizer, model, scheduler, t, settings.run.seed, tally, metrics)
    if not finished:
        by_first(t, folder.prepare, out, settings, saver.last, metrics)
    validation = partial(Validation, model, data, settings.data.batch_size, device, beat=watchdog.beat)
    return Parts(
        settings=settings,
        topology=t,
        preemption=preemption,
        watchdog=watchdog,
        folder=out,
        loader=Loader(data.train, batches, device, settings.data.augment),
        B=batches.B,
        model=model,
        params=params,
        optimizer=optimizer,
        scheduler=scheduler,
        rounds=rounds,
        first_round=first_round,
        finished=finished,
        hosts=from_all(t.world, socket.gethostname()),
        tally=tally,
        metrics=metrics,
        saving=make_saving(settings, t, saver, optimizer, model, tally, metrics, watchdog, images),
        validator=make_validator(settings, t, optimizer, validation, seen, out, metrics),
        trace=partial(trace_of, settings.run.trace, min(1, rounds - 1), out / "traces", rank),
        news=[
            headline(settings, t, data, params, rounds, optimizer.round_length, device),
            f"writes into {out}, with seed {settings.run.seed}",
            *news,
        ],
    )


def where_it_begins(stored, rounds, out):
    """(The round that a run of `rounds` begins with, whether it is finished), from its checkpoint, or None."""
    if stored is None:
        return 0, False
    first = stored.manifest["round"] + 1
    return first, first >= rounds and (out / "reference.pt").exists()


def open_data(settings, topology, out):
    """The data set, which the settings then name whole; the built-in one is made where it is missing."""
    d = settings.data
    path = Path(d.path or default_path(d.name)).absolute()
    if d.name == "digits" and not d.path:
        try:
            topology.together(make_digits, path, topology.local_rank)
        except BadInput:
            # a current folder that cannot be written; the output folder can
            path = out.absolute() / path.name
            by_first(topology, make_digits, path, 0)
    topology.together(check_copy, d.node_copy)
    which = (d.name, d.preprocessing, d.samples, d.checksum)
    data = topology.together(open_dataset, path, *which, d.node_copy)
    d.path, d.checksum = str(path), data.checksum
    return data


def check_copy(path):
    """Raises BadInput where the copy of a data set on this node is missing."""
    if path and not os.path.isfile(path):
        raise BadInput(
            f"--data.node_copy {path}: no such file on {socket.gethostname()}; leave it out, or copy it there"
        )


def make_digits(path, local_rank):
    """The built-in data set, made where it is missing by the first rank of each node."""
    if local_rank == 0 and not path.exists():
        prepare("digits", out=path)


def share(settings, data, topology):
    """(The samples that this replica sees, this rank's MiniBatches of them)."""
    mine = {"seed": settings.run.seed, "replica": topology.replica_index}
    # section 5: SGD and Entropy-SGD have one replica, which may see a random part alone
    covers = settings.algorithm.name not in DATA_PARALLEL
    seen = seen_by(len(data.train), settings.data.fraction, n=topology.n, covers=covers, **mine)
    return seen, MiniBatches(seen, settings.data.batch_size, place=topology.place, m=topology.m, **mine)


def make_model(settings, data, topology, device):
    """The network with the weights that all ranks start from; random numbers after it are each rank's own."""
    torch.manual_seed(settings.run.seed)
    model = topology.together(build_model, settings, data, settings.data.batch_size // topology.m).to(device)
    topology.broadcast([*model.parameters(), *model.buffers()])
    # dropout differs from rank to rank
    torch.manual_seed(resume.seed_of(settings.run.seed, topology.world.Get_rank()))
    return model


def make_optimizer(settings, params, topology, B):
    """The optimiser that the settings name, over `params`, with B mini-batches in a pass."""
    a = settings.algorithm
    common = {"lr": settings.schedule.lr, "momentum": a.momentum, "weight_decay": a.weight_decay}
    inner = {"L": a.L, "alpha": a.alpha, "gamma0": a.gamma0, "batches_per_epoch": B, "inner_lr": a.inner_lr}
    if a.inner != "sgd":
        common["weight_decay"], inner["inner_lr"] = 0.0, None
        inner["inner"] = partial(INNERS[a.inner], lr=a.inner_lr, weight_decay=a.weight_decay)
    if a.name == "parle":
        groups = {"comm": topology.cross, "replica": topology.replica, "gather": topology.gather}
        ways = {"reference": a.reference, "inside": a.inside, "payload": a.payload}
        return Parle(params, rho0=a.rho0, **ways, **groups, **inner, **common)
    if a.name == "entropy_sgd":
        return EntropySGD(params, **inner, **common)
    if a.name == "elastic_sgd":
        return ElasticSGD(params, rho0=a.rho0, batches_per_epoch=B, scoping=a.scoping, comm=topology.cross, **common)
    return SGD(params, **common)


def make_schedule(settings, optimizer, B):
    """(The scheduler of eta, rounds that the run has), with B mini-batches in a pass."""
    s, length = settings.schedule, optimizer.round_length
    steps_per_epoch = B * length if settings.algorithm.name in ROUNDS else B
    rounds = max(1, math.ceil(s.epochs * steps_per_epoch / length))
    also = optimizer.inner if s.inner else None
    # a cosine ends with the epochs, also of a run that is to end before
    scheduler = Schedule(optimizer, also, s, steps_per_epoch, rounds * length)
    return scheduler, min(rounds, s.max_rounds or rounds)


def go_on(stored, rounds, optimizer, model, scheduler, topology, seed, tally, metrics):
    """Bring everything to where a checkpoint was taken; lines to say. Collective over all ranks."""
    facts, changed = resume.restore(stored, optimizer, model, scheduler, topology, seed)
    tally.go_on(stored.manifest["step"], facts)
    metrics.go_on(stored.manifest["round"], stored.facts(0)["seconds"])
    return [f"goes on after round {stored.manifest['round'] + 1}/{rounds}, from {stored.folder}", *changed]


def make_saving(settings, topology, saver, optimizer, model, tally, metrics, watchdog, images):
    """What saves the run; images: in the training and the test set."""

    def snapshot():
        counted = {**tally.facts(), "seconds": metrics.seconds}
        return resume.capture(optimizer, model, topology.place, topology.m, counted)

    facts = {
        "n": topology.n,
        "m": topology.m,
        "images": images,
        "data": settings.data.checksum,
        "settings": resume.sections(settings),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    r = settings.run
    return Saving(
        saver,
        snapshot,
        facts,
        every=r.checkpoint_every,
        minutes=r.checkpoint_minutes,
        metrics=metrics,
        watchdog=watchdog,
        round_length=optimizer.round_length,
        decides=topology.world.Get_rank() == 0,
    )


def make_validator(settings, topology, optimizer, validation, seen, out, metrics):
    """What validates the reference; validation: makes a Validation over a communicator and the samples seen."""
    # of one replica that sees a part, the training error is that of the part
    used = seen if settings.algorithm.name in DATA_PARALLEL else None
    return Validator(
        optimizer,
        validation(topology.world, used),
        validation(topology.replica, used),
        topology,
        out,
        metrics,
        batches=settings.run.statistics_batches,
        save_replicas=settings.run.save_replicas,
    )
