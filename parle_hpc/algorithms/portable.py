"""The state of a FlatOptimizer as torch's tools know states: a dict of tensors for each parameter."""

from typing import Any

import torch

from ..cluster.agreement import from_all
from .inner import PREFIX


def pack(optimizer: Any, groups: dict[str, Any]) -> dict[str, Any]:
    """The state dict of an optimiser; `groups` is torch's own, whose "param_groups" it takes.

    Beside "state" and "param_groups" it has "replica": of which replica it is, and what was each rank's own, in the
    order of the replica's ranks. Collective over the replica where the state is divided among its ranks.
    """
    layout, per_parameter, own, inner = optimizer._layout, {}, {}, {}
    for name, (flat, kind) in optimizer.saved().items():
        if kind == "own":
            own[name] = flat.clone()
        elif name.startswith(PREFIX):
            inner[name] = flat.clone()
        else:
            shaped = layout.shaped(optimizer.gathered(flat) if kind == "share" else flat)
            per_parameter[name] = [v.clone(memory_format=torch.contiguous_format) for v in shaped]
    state = {
        i: {"step": optimizer.steps, **{name: tensors[i] for name, tensors in per_parameter.items()}}
        for i in range(len(layout.params))
    }
    places = [own] if optimizer._replica is None else from_all(optimizer._replica, own)
    where, n = optimizer._of_replica()
    replica = {"index": where, "of": n, "own": places, "inner": inner, "tracks": optimizer._outside.tracks}
    return {**groups, "state": state, "replica": replica}


def unpack(optimizer: Any, state_dict: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int, bool]:
    """({name: flat tensor, whole or this rank's own}, steps, whether weights are tracked) of what `pack` made.

    Changes nothing. Raises ValueError where it does not fit: a state of another optimiser, network or replica.
    """
    layout, kind = optimizer._layout, type(optimizer).__name__
    # tools name the parameters otherwise, and keep their order in the groups
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    state = [state_dict["state"][key] for key in keys if key in state_dict["state"]]
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
    places = replica.get("own", [])
    here = places[optimizer._place] if len(places) == optimizer._m else {}
    told = {**replica.get("inner", {}), **here}
    found = {name: vector for name, vector in told.items() if name.startswith(PREFIX)}
    has = getattr(optimizer, "inner", None) is not None
    require_fit(kind, "inner", bool(found) == has, "that of an optimiser inside" if has else "left out")
    for name, (flat, _) in optimizer.saved().items():
        if name.startswith(PREFIX):
            continue
        if name in here:
            require_fit(kind, name, here[name].numel() == flat.numel(), f"{flat.numel()} floats")
            found[name] = here[name]
        elif all(name in entry for entry in state):
            found[name] = flattened(optimizer, name, [entry[name] for entry in state])
        else:
            # what has been told of the weights may begin anew
            require_fit(kind, name, name.startswith("payload_"), "in the state of every parameter")
    steps = {int(entry.get("step", -1)) for entry in state}
    require_fit(kind, "step", len(steps) == 1 and min(steps) >= 0, "one number")
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
