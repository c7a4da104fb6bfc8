"""Which channels of a network may change places without changing what it computes (section 1.2)."""

from typing import NamedTuple

from torch import nn


class Symmetry(NamedTuple):
    """Channels that may be permuted together.

    filters: names of the layers that produce them. The first is the one to compare by: what it reads is permuted only
        by Symmetries that come earlier in the list.
    norms: names of the BatchNorm layers over them.
    readers: names of the layers that read them; a linear layer behind a convolution reads several numbers a channel.
    """

    filters: tuple
    norms: tuple
    readers: tuple


def chain(model):
    """The Symmetries of an nn.Sequential: one for each convolution or linear layer but the last."""
    found, producer, norms = [], None, []
    for name, module in model.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if producer is not None:
                found.append(Symmetry((producer,), tuple(norms), (name,)))
            producer, norms = name, []
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            norms.append(name)
    return found
