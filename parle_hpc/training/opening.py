"""The task that a run trains, opened on all ranks, and checked before anything takes long."""

import hashlib
import os
import socket
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..cluster.agreement import by_first
from ..data.advice import default_path
from ..data.loader import sweep
from ..data.prepare import BUILT_IN, prepare
from ..errors import BadInput
from ..settings.task_file import is_file
from ..tasks.chosen import Sources, of_user
from .batchnorm import untouched


def open_task(settings, topology, out):
    """The task and its data as Sources; the settings then name the data whole.

    Built-in data are made where they are missing, in `out` where the current folder cannot be written. Collective over
    all ranks. Raises BadInput on all of them.
    """
    d, t = settings.data, settings.task
    if t.file:
        t.checksum = topology.together(checksum_of_file, t.file)
    else:
        path = Path(d.path or default_path(d.name)).absolute()
        if d.name in BUILT_IN and not d.path:
            try:
                topology.together(make_built_in, d.name, path, topology.local_rank)
            except BadInput:
                # a current folder that cannot be written; the output folder can
                path = out.absolute() / path.name
                by_first(topology, make_built_in, d.name, path, 0)
        topology.together(check_copy, d.node_copy)
        d.path = str(path)
    sources = topology.together(Sources, settings)
    if not t.file:
        d.checksum = sources.task.data.checksum
    topology.together(check_samples, settings, sources.train, sources.validation)
    return sources


def checksum_of_file(file):
    """16 hexadecimal digits of a task's file; None where it is a module."""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest() if is_file(file) else None


def check_copy(path):
    """Raises BadInput where the copy of a data set on this node is missing."""
    if path and not os.path.isfile(path):
        raise BadInput(
            f"--data.node_copy {path}: no such file on {socket.gethostname()}; leave it out, or copy it there"
        )


def make_built_in(name, path, local_rank):
    """A built-in data set, made where it is missing by the first rank of each node."""
    if local_rank == 0 and not path.exists():
        prepare(name, out=path)


def check_samples(settings, *sources):
    """Raises BadInput where a part has no samples, or no length."""
    for source in sources:
        size = of_user(settings, f"len() of dataset({source.part!r})", lambda source=source: len(source))
        if size < 1:
            raise BadInput(f"--task.file {settings.task.file}: dataset({source.part!r}) has no samples")


def checked_model(settings, train, share):
    """A new network, which takes the task's own data and gives a loss with gradients. Raises BadInput where not.

    share: samples of a mini-batch on each rank.
    """
    task, told = train.task, f"--task.file {settings.task.file}"
    model = of_user(settings, "model()", task.model)
    if not isinstance(model, torch.nn.Module):
        raise BadInput(f"{told}: model() must give a torch.nn.Module, not {type(model).__name__}")
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise BadInput(f"{told}: model() has no parameter that needs a gradient")
    if share < 2 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        batch_size = settings.data.batch_size
        raise BadInput(
            f"--data.batch_size {batch_size}: one sample a rank is too few for BatchNorm; "
            f"take at least {2 * batch_size}, or fewer ranks a replica"
        )
    if settings.task.file:
        before = torch.random.get_rng_state()
        try_out(settings, train, model, params, min(share, 4, len(train)))
        torch.random.set_rng_state(before)
    return model


def try_out(settings, train, model, params, count):
    """Raises BadInput where the task cannot do with its first `count` training samples what a run does with all."""
    task, told = train.task, f"--task.file {settings.task.file}"
    batches = sweep(train, [range(count)], torch.device("cpu"))
    _, batch = of_user(settings, f"a batch of {count} samples", lambda: next(iter(batches)))
    with untouched(model):
        model.train()
        loss = of_user(settings, "loss(model, batch)", lambda: task.loss(model, batch))
        if not isinstance(loss, torch.Tensor) or loss.shape != ():
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise BadInput(f"{told}: loss(model, batch) must give a tensor of shape (), a mean, not {what}")
        if not loss.requires_grad:
            raise BadInput(f"{told}: loss(model, batch) has no gradient; compute it from what the model gives")
        of_user(
            settings, "the gradient of loss(model, batch)", lambda: torch.autograd.grad(loss, params, allow_unused=True)
        )
        model.eval()
        with torch.no_grad():
            scores = of_user(settings, "scores(model, batch)", lambda: task.scores(model, batch))
    if not (isinstance(scores, dict) and scores and all(map(is_name, scores))):
        raise BadInput(f"{told}: scores(model, batch) must give a dict of tensors by name, with one or more")
    for name, values in scores.items():
        if not isinstance(values, torch.Tensor) or values.shape != (count,):
            what = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise BadInput(f"{told}: the score {name} must have a value for each sample, shape ({count},), not {what}")


def is_name(name):
    return isinstance(name, str) and name.isidentifier() and name != "loss"


def check_data(stored, samples, settings):
    """Raises BadInput where a checkpoint was made with other data; samples: how many, (training, validation)."""
    data, noun = settings.data, "samples" if settings.task.file else "images"
    now, before = " + ".join(map(str, samples)), " + ".join(map(str, stored.manifest["samples"]))
    if now == before:
        now, before = data.checksum, stored.manifest["data"]
    else:
        now, before = f"{now} {noun}", f"{before} {noun}"
    if now != before:
        raise BadInput(
            f"{where_data_is(settings)}: holds {now}; the checkpoints in {stored.folder} were made with {before}; "
            "give the same data, or another --out"
        )


def where_data_is(settings):
    return f"--task.file {settings.task.file}" if settings.task.file else f"--data.path {settings.data.path}"


def check_task(stored, settings):
    """Raises BadInput where a task's file is not what it was, unless --resume names what to go on from."""
    t, before = settings.task, stored.manifest["settings"]["task"].get("checksum")
    if t.checksum != before and settings.resume == "auto":
        raise BadInput(
            f"--task.file {t.file}: has changed since the checkpoints in {stored.folder} were made; "
            f"--resume {stored.folder.parent.parent} goes on with it as it is now, another --out starts anew"
        )
