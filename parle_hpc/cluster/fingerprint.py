"""What ranks compare instead of the thing itself, numbers that a float holds; and the line where they differ."""

import hashlib

import torch

from ..errors import Disagreement
from .waiting import numbered

INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element


def in_memory_order(tensor):
    """A dense tensor as a vector, shape (numel,), in the order of its memory, which it shares."""
    return tensor if tensor.dim() == 1 else tensor.as_strided((tensor.numel(),), (1,))


def bits(tensors):
    """Sum of the tensors' bits, int64 of shape (), on their device: differs where a bit does, but for rare chances."""
    whole = [t.detach().contiguous().view(-1) for t in tensors]
    return sum(t.view(INTEGER[t.element_size()]).sum(dtype=torch.int64) for t in whole)


def digest(value, width=52):
    """A number of so many bits that stands for a value, whose repr is the same on all ranks."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "little") % (1 << width)


def compare(names, rows, ranks, where, shown=()):
    """Raise Disagreement, naming the first thing that differs and on which ranks, where the rows are not all alike.

    Args:
        names: what the numbers of a row stand for.
        rows: a row of numbers for each rank.
        ranks: the world rank of each row; None where it is its number.
        where: what the line begins with.
        shown: names of which the number itself says something.
    """
    ranks = ranks or range(len(rows))
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        if len(set(values)) > 1:
            raise Disagreement(f"{where}: {difference(name, values, ranks, name in shown)}", min(ranks))


def difference(name, values, ranks, shown):
    """What differs, in words: `values`, one a rank, stand for `name`."""
    found = {}
    for rank, value in zip(ranks, values, strict=True):
        found.setdefault(value, []).append(rank)
    if shown:
        told = ", ".join(f"{value:g} on {numbered(on)}" for value, on in found.items())
        return f"{name} is {told}; it must be the same on all ranks"
    usual = max(found.values(), key=len)
    others = [rank for on in found.values() if on is not usual for rank in on]
    return f"{name} differ between {numbered(usual)} and {numbered(others)}"
