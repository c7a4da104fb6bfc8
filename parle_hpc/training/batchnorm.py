"""BatchNorm statistics of weights that no mini-batch was trained with, such as the reference."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..cluster.agreement import Group
from ..cluster.gradients import optimiser_of
from ..errors import BadInput


@contextmanager
def batchnorm_of_reference(model: torch.nn.Module, batches: Iterable[Any], topology: Any = None) -> Iterator[None]:
    """The model has BatchNorm statistics of the weights that it holds inside, and is as it was, bit for bit, after.

        with optimizer.at_reference(), batchnorm_of_reference(model, loader, topology):
            validate(model)

    Statistics belong to weights: with those of the live weights the reference may be wrong nine times in ten. They are
    computed as torch.optim.swa_utils.update_bn does, with dropout off, and averaged over the ranks, weighted by their
    number of batches. Inside, the model is in evaluation mode.

    Args:
        model: the network, with or without BatchNorm.
        batches: this rank's mini-batches of training data: inputs, or lists and tuples whose first element they are. A
            part is enough. A mini-batch of one sample is left out.
        topology: Topology, over all of whose ranks this is collective; None for one process.

    Raises BadInput where there is BatchNorm, and no rank has a mini-batch of two samples, and Disagreement where the
    ranks' optimisers have not done equally many steps.
    """
    device, group = next(model.parameters()).device, Group(None if topology is None else topology.world)
    compare_steps(model, group)
    inputs = (batch[0] if isinstance(batch, list | tuple) else batch for batch in batches)
    moved = (x.to(device) for x in inputs if len(x) > 1)
    with untouched(model):
        recompute_statistics(model, model, moved, group)
        yield


def compare_steps(model, group):
    """Raise Disagreement where the steps of the optimisers that move the model differ in the group; collective."""
    optimisers = {optimiser_of.get(p, lambda: None)() for p in model.parameters()} - {None}
    steps = sum(optimiser.nominal_steps for optimiser in optimisers)
    group.compare(["the number of steps of the optimiser"], [steps], "batchnorm_of_reference: the ranks do not agree")


@contextmanager
def untouched(model):
    """Whatever the body does to modes and BatchNorm statistics, the model has its own again after, bit for bit."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    momenta = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, momentum in momenta:
            module.momentum = momentum
        for buffer, kept in buffers:
            buffer.copy_(kept)


def layers_with_statistics(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def recompute_statistics(model, forward, batches, group):
    """BatchNorm statistics of the weights as they are, as torch.optim.swa_utils.update_bn computes them.

    Reset, then the cumulative average over this rank's `batches` with dropout off, each of which `forward` is called
    with, then the mean over the ranks, weighted by their number of batches. Leaves the model in evaluation mode.
    Collective over the group.
    """
    layers = layers_with_statistics(model)
    model.eval()
    if not layers:
        return
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None
    count = 0
    for batch in batches:
        forward(batch)
        count += 1
    model.eval()
    statistics = [s for layer in layers for s in (layer.running_mean, layer.running_var)]
    mine = torch.cat(statistics).double().cpu().numpy() * count
    *total, batches_of_all = group.sum([*mine, count])
    if not batches_of_all:
        raise BadInput("there is no mini-batch of two samples for BatchNorm's statistics")
    mean = torch.tensor(total, dtype=torch.float64) / batches_of_all
    for s, values in zip(statistics, torch.split(mean, [s.numel() for s in statistics]), strict=True):
        s.copy_(values)
