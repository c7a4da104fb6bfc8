"""The state of a FlatOptimizer as torch's and other people's tools know states: a dict of tensors for each parameter."""

from typing import Any

import torch

from ..cluster.agreement import from_all


def pack(optimizer: Any, groups: dict[str, Any]) -> dict[str, Any]:
    """The state dict of an optimiser; `groups` is torch's own, whose "param_groups" it takes.

    Beside "state" and "param_groups" it has "replica": of which replica it is, and what was each rank's own, in the
    order of the replica's ranks. Collective over the replica where the state is divided among its ranks.
    """
    layout, per_parameter, own = optimizer._layout, {}, {}
    for name, (flat, kind) in optimizer.saved().items():
        if kind == "own" or flat.numel() not in (optimizer.size, width(optimizer)):
            own[name] = flat.clone()
        else:
            shaped = layout.shaped(optimizer.gathered(flat) if kind == "share" else flat)
            per_parameter[name] = [v.clone(memory_format=torch.contiguous_format) for v in shaped]
    state = {
        i: {"step": optimizer.steps, **{name: tensors[i] for name, tensors in per_parameter.items()}}
        for i in range(len(layout.params))
    }
    places = [own] if optimizer._replica is None else from_all(optimizer._replica, own)
    where, n = optimizer._of_replica()
    replica = {"index": where, "of": n, "own": places, "tracks": optimizer._outside.tracks}
    return {**groups, "state": state, "replica": replica}


def width(optimizer):
    """Elements of this rank's share of a flat buffer."""
    return optimizer.share.stop - optimizer.share.start


def unpack(optimizer: Any, state_dict: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int, bool]:
    """({name: flat tensor, whole or this rank's own}, steps, whether weights are tracked) of what `pack` made.

    Changes nothing. Raises ValueError where it does not fit: a state of another optimiser, network or replica.
    """
    layout, state = optimizer._layout, state_dict.get("state", {})
    kind = type(optimizer).__name__
    if len(state) != len(layout.params):
        raise ValueError(
            f"the state has {len(state)} parameters, and this {kind} {len(layout.params)}: it is another network's"
        )
    replica = state_dict.get("replica", {})
    mine, n = optimizer._of_replica()
    if replica and n > 1 and replica["index"] != mine:
        raise ValueError(
            f"the state is that of replica {replica['index']}, and this rank is of replica {mine}: x^a, z and the "
            "momenta are one replica's own; save it on the first rank of each replica, and load each its own"
        )
    own = replica.get("own", [])
    here = own[optimizer._place] if len(own) == optimizer._m else {}
    found, steps = {}, None
    for name, (flat, which) in optimizer.saved().items():
        if name in here:
            require_fit(kind, name, here[name].numel() == flat.numel(), f"{flat.numel()} floats")
            found[name] = here[name]
        elif all(name in state[i] for i in range(len(state))):
            found[name] = flattened(optimizer, name, [state[i][name] for i in range(len(state))])
        else:
            # what has been told of the weights begins anew
            require_fit(kind, name, which == "own" and name.startswith("payload_"), "in the state of every parameter")
    steps = {int(entry["step"]) for entry in state.values()}
    require_fit(kind, "step", len(steps) == 1, "one number")
    return found, steps.pop(), bool(replica.get("tracks", False))


def flattened(optimizer, name, tensors):
    """A flat buffer, whole, with the tensors of the parameters, whose elements are in the order of their indices."""
    flat = optimizer._layout.zeros()
    for view, tensor in zip(optimizer._layout.shaped(flat), tensors, strict=True):
        fits = tensor.shape == view.shape
        require_fit(type(optimizer).__name__, name, fits, f"of shape {tuple(view.shape)}, and is {tuple(tensor.shape)}")
        view.copy_(tensor)
    return flat


def require_fit(kind, name, fits, right):
    if not fits:
        raise ValueError(f"the state does not fit this {kind}: {name} must be {right}")
