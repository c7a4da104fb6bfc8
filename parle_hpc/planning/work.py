"""What a recipe computes, counted on one small mini-batch where no probe has timed it."""

from pathlib import Path

from ..errors import BadInput
from .machine import Work

COUNTED = (2, 4)  # samples of the mini-batches that are counted


def work_of(settings, machine):
    """machine.Work of a recipe: the probe's where there is one, else from counted operations and the machine's rate.

    Raises BadInput where there is neither.
    """
    name = settings.recipe or settings.task.file
    if name in machine.work:
        return machine.work[name]
    if machine.flops is None:
        known = f"; it knows {', '.join(machine.work)}" if machine.work else ""
        raise BadInput(
            f"--machine {machine.name}: lacks work.{name}, seconds of its mini-batches, and flops{known}; "
            f"--probe --recipe {name} measures them there"
        )
    return counted(settings, machine.flops)


def counted(settings, flops):
    """Work with the seconds that `flops` operations a second give, and the bytes that autograd keeps."""
    from ..data.advice import default_path
    from ..data.prepare import BUILT_IN
    from ..tasks.chosen import Sources
    from ..training.opening import checked_model, make_built_in

    d = settings.data
    if not settings.task.file:
        path = Path(d.path or default_path(d.name))
        if d.name in BUILT_IN and not d.path:
            make_built_in(d.name, path, 0)
        d.path = str(path)
    train = Sources(settings).train
    model = checked_model(settings, train, COUNTED[0])
    found = [count(train, model, samples) for samples in COUNTED]
    return Work(
        parameters=sum(p.numel() for p in model.parameters()),
        training_samples=len(train),
        samples=list(map(float, COUNTED)),
        seconds=[operations / flops for operations, _ in found],
        memory=[kept for _, kept in found],
    )


def count(train, model, samples):
    """(Operations, bytes that autograd keeps) of forward and backward pass of a mini-batch."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    from ..data.loader import sweep

    _, batch = next(iter(sweep(train, [range(samples)], torch.device("cpu"))))
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = train.task.loss(model, batch)
        loss.backward()
    return counter.get_total_flops(), sum(kept.values())
