"""What the ranks of a job measure of their machine, for machine.toml: one minute, under srun or mpirun."""

import math
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..cluster.agreement import by_first, from_all
from ..cluster.diagnosis import probes
from ..cluster.durable import write_whole
from ..cluster.topology import Topology
from ..coupling.choice import reference_over
from ..data.loader import Loader
from ..data.split import MiniBatches
from ..training.computing import Computing, settle_precision
from ..training.loop import backward
from ..training.memory import keep_freed
from ..training.opening import checked_model, open_task
from ..training.optimizers import make_optimizer
from . import model
from .costs import FLOAT
from .machine import Work

STEPS, WARM, L = 20, 3, 10  # mini-batches that are timed, and before them; in a round of the probe's
LEAST = 4  # times smaller is the other mini-batch
WRITTEN = 1 << 28  # bytes of the file that tells how fast the disk is
# what no minute can tell, to be put right by hand
NODE_MTBF, RESTART = 2e7, 300.0


class Alone(NamedTuple):
    """The Topology of an optimiser that has nobody to talk to."""

    cross: Any = None
    replica: Any = None
    gather: Any = None


def probe(settings, topology, out):
    """The tables of machine.toml, with the work of the settings' recipe. Collective over all ranks.

    topology: has a replica on each node. Figures that cannot be measured, as between nodes where there is one, are
    missing. Raises BadInput as the trainer does.
    """
    device = topology.together(topology.device, settings.run.device)
    if device.type == "cpu":
        keep_freed()
    settle_precision(settings, topology, device, None)
    sources = open_task(settings, topology, out)
    work = work_of(settings, sources.train, topology, device)
    return {
        "name": f"{socket.gethostname()} and its like",
        "measured": True,
        "device": device.type,
        "ranks_per_node": topology.m,
        "memory": memory_of(device, topology.m),
        **links(topology, device),
        "disk": by_first(topology, disk, out),
        "copy": copies(device),
        "node_mtbf": NODE_MTBF,
        "restart": RESTART,
        "work": {settings.recipe or settings.task.file: work.model_dump()},
    }


def work_of(settings, train, topology, device):
    """Work of a recipe, all ranks computing at once. Collective over all ranks."""
    d, a = settings.data, settings.algorithm
    large = -(-d.batch_size // d.accumulate)
    sizes = sorted({max(2, large // LEAST), large})
    sizes = sizes if len(sizes) == 2 else [large, 2 * large]
    inner = 2 if a.inner == "adamw" else 1
    rows = []
    for samples in sizes:
        # the smaller first: of a process the peak stays
        steps, moves, parameters = timed(settings, train, topology, device, samples)
        floats = 2 + model.state(a.name, 1, 1, inner=inner)
        rows.append((statistics.median(steps), spread(steps), moves, peak(device) - FLOAT * floats * parameters))
    seconds, noise, moves, memory = (averaged(topology, column) for column in zip(*rows, strict=True))
    return Work(
        parameters=parameters,
        training_samples=len(train),
        samples=sizes,
        seconds=seconds,
        noise=noise[1],
        moves=moves[1],
        memory=[max(0.0, bytes) for bytes in memory],
    )


def averaged(topology, values):
    """Means over all ranks, elementwise. Collective over them."""
    return np.mean(from_all(topology.world, list(values)), axis=0).tolist()


def timed(settings, train, topology, device, samples):
    """(Seconds of each mini-batch of so many samples, those that a coupling adds, weights), of one rank by itself."""
    alone = settings.model_copy(deep=True)
    alone.algorithm.L = L
    network = topology.together(checked_model, alone, train, samples).to(device)
    params = list(network.parameters())
    batches = MiniBatches(np.arange(len(train)), samples, seed=0, replica=topology.world.Get_rank())
    computing = Computing(train.task, network, device, alone.run.precision)
    optimizer = make_optimizer(alone, params, Alone(), batches.B)
    loader = Loader(train, batches, device)
    network.train()
    steps, couplings = [], []
    for step in range(WARM + STEPS):
        started = now(device)
        for p in params:
            p.grad = None
        backward(computing, loader(step))
        optimizer.step()
        couples = optimizer.round_length == L and (step + 1) % L == 0
        if step >= WARM:
            (couplings if couples else steps).append(now(device) - started)
    moves = statistics.median(couplings) - statistics.median(steps) if couplings else 0.0
    return steps, max(0.0, moves), sum(p.numel() for p in params)


def now(device):
    """Seconds, when all that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def spread(values):
    """Standard deviation over the mean, from the quartiles: one hiccup of the machine is not noise of its steps."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 1.349 / middle


def peak(device):
    """Bytes at this rank's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def memory_of(device, ranks):
    """Bytes that a rank may take, of its GPU, or of its node's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks


def links(topology, device):
    """{name: Link as a dict} inside a node and between nodes, by the doctor's measurements. Collective over all ranks.

    Where there is one node there is nothing between; a node of one rank has nothing inside, and takes what is between.
    """
    n, m = topology.n, topology.m
    reduce = model.ring if device.type == "cuda" else model.halving
    inside, across = probes.measured(topology, torch, reference_over)
    found = {}
    if m > 1:
        found["inside"] = link(inside, 1, lambda size, link: reduce(m, size, link))
    if n > 1:
        # each of the m columns moves as many, through the same card
        found["across"] = link(across, m, lambda size, link: model.coupling(n, 1, size, link, link))
        whole, _ = probes.measured(Topology.split(replicas=1), torch, reference_over)
        near = model.Link(**found["inside"]) if m > 1 else model.Link(0.0, math.inf)
        small, large = (reduce(m, size, near) for size in (FLOAT, FLOAT * whole.floats))
        # what is between nodes may vanish beside what is inside them
        latency, seconds = (
            max(0.1 * whole.latency, whole.latency - small),
            max(0.1 * whole.seconds, whole.seconds - large),
        )
        beyond = whole._replace(latency=latency, seconds=seconds)
        found["between"] = link(beyond, 1, lambda size, link: reduce(n, size, link))
        found.setdefault("inside", found["between"])
    return found


def link(found, columns, takes):
    """The Link, as a dict, with which `takes(size, link)` are the seconds of a Reduction in so many columns."""
    messages, vectors = takes(0.0, model.Link(1.0, 1.0)), takes(1.0, model.Link(0.0, 1.0))
    size, seconds = FLOAT * found.floats * columns, max(found.seconds - found.latency, 1e-9)
    return {"latency": found.latency / messages, "bandwidth": vectors * size / seconds}


def disk(out):
    """Bytes a second into a file of the folder, forced to disk."""
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=out))
    try:
        started = time.perf_counter()
        write_whole(folder / "file", bytes(WRITTEN))
        return WRITTEN / (time.perf_counter() - started)
    finally:
        shutil.rmtree(folder)


def copies(device):
    """Bytes a second of a copy of a state, as a checkpoint makes it."""
    state = torch.ones(WRITTEN // FLOAT, device=device)
    started = now(device)
    state.to("cpu", copy=True)
    return WRITTEN / (now(device) - started)
