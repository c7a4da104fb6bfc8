"""Section 1.2: networks of one kind aligned to each other, their overlap and their average."""

import torch

NORM_STATE = ("weight", "bias", "running_mean", "running_var")


def permuted(state, symmetry, order):
    """The state dict with channel order[i] in place i of all layers of a Symmetry; what it computes is the same."""
    state = dict(state)
    for name in symmetry.filters:
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state:
                state[key] = state[key][order]
    for name in symmetry.norms:
        for key in NORM_STATE:
            state[f"{name}.{key}"] = state[f"{name}.{key}"][order]
    for name in symmetry.readers:
        weight = state[f"{name}.weight"]
        inputs = weight.unflatten(1, (len(order), weight.shape[1] // len(order)))
        state[f"{name}.weight"] = inputs[:, order].flatten(1, 2)
    return state


def similarity(a, b):
    """Cosines between the filters of two weights of one shape: (filters of a, filters of b)."""
    a, b = (torch.nn.functional.normalize(w.flatten(1).double(), dim=1) for w in (a, b))
    return a @ b.T


def greedy(similarity):
    """order[i] = j: the most similar pair (i, j) first, then the most similar of what is left, and so on."""
    count = len(similarity)
    order, free = [-1] * count, [True] * count
    for pair in similarity.flatten().argsort(descending=True, stable=True).tolist():
        i, j = divmod(pair, count)
        if order[i] < 0 and free[j]:
            order[i], free[j] = j, False
    return torch.tensor(order)


def align(state, to, symmetries):
    """The state dict with its channels permuted, layer by layer from the input on, so as to resemble those of `to`."""
    for symmetry in symmetries:
        name = f"{symmetry.filters[0]}.weight"
        state = permuted(state, symmetry, greedy(similarity(to[name], state[name])))
    return state


def overlap(a, b):
    """For each layer with weights the mean cosine between filters in the same place; {name: overlap}."""
    layers = [key for key, tensor in a.items() if key.endswith(".weight") and tensor.dim() > 1]
    return {key.removesuffix(".weight"): similarity(a[key], b[key]).diagonal().mean().item() for key in layers}


def average(states):
    """The mean of state dicts; BatchNorm statistics of it mean nothing until they are computed anew."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(first.dtype)
        for key, first in states[0].items()
    }
