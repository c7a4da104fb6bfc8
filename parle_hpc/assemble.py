"""What a run is put together from: output folder, data, network, optimiser."""

import os
from datetime import datetime
from pathlib import Path

from torch.nn.modules.batchnorm import _BatchNorm

from .data.prepare import prepare
from .evaluate import network
from .failure import BadInput
from .optim import SGD, ElasticSGD, EntropySGD, Parle


def make_optimizer(settings, params, topology, B):
    """The optimiser that the settings name, over `params`, with B mini-batches in a pass."""
    a = settings.algorithm
    common = {"lr": settings.schedule.lr, "momentum": a.momentum, "weight_decay": a.weight_decay}
    inner = {"L": a.L, "alpha": a.alpha, "gamma0": a.gamma0, "batches_per_epoch": B, "inner_lr": a.inner_lr}
    if a.name == "parle":
        groups = {"comm": topology.cross, "replica": topology.replica, "gather": topology.gather}
        ways = {"reference": a.reference, "inside": a.inside, "payload": a.payload}
        return Parle(params, rho0=a.rho0, **ways, **groups, **inner, **common)
    if a.name == "entropy_sgd":
        return EntropySGD(params, **inner, **common)
    if a.name == "elastic_sgd":
        return ElasticSGD(params, rho0=a.rho0, batches_per_epoch=B, scoping=a.scoping, comm=topology.cross, **common)
    return SGD(params, **common)


def build_model(settings, data, share):
    """The network that the settings name for this data set, with new weights.

    share: images of a mini-batch on each rank. Raises BadInput where the network cannot take them.
    """
    model = network(settings, data)
    if share < 2 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise BadInput(
            f"--data.batch_size {settings.data.batch_size}: one image a rank is too few for BatchNorm; "
            f"take at least {2 * settings.data.batch_size}, or fewer ranks a replica"
        )
    return model


def open_output(settings):
    """Make the output folder; the folder. Raises BadInput where that is not possible."""
    folder = Path(settings.out or Path("runs") / f"{Path(settings.recipe).stem}-{run_name(os.environ)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings.resume == "never" and (folder / "metrics.jsonl").exists():
            raise BadInput(f"--out {folder}: holds a run already; give another folder, or go on with --resume auto")
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    return folder


def run_name(environment):
    """The job's (array) id under Slurm, so that a requeued job finds itself; else date and time."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID") or f"{datetime.now():%Y%m%d-%H%M%S}"


def make_digits(path, local_rank):
    """The built-in data set, made where it is missing by the first rank of each node."""
    if local_rank == 0 and not path.exists():
        prepare("digits", out=path)
