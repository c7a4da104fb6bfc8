"""Gradients, averaged over the ranks of a replica: each parameter's with its own, whatever a rank has of them."""

import time

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import Disagreement
from .fingerprint import bits, compare
from .waiting import called, waits

SPARSE = "sparse gradients are not supported: the state is dense"
WIDTH = 21  # bits of a number that survives division by m, and times m again, in float32
START = "the weights at the start (call topology.broadcast before the first step)"
FACTS = ("the shapes of the parameters", "the weights", "the number of optimiser steps")
FIRST_FACTS = (FACTS[0], START, FACTS[2])
WHERE = "average_gradients: the ranks of a replica do not agree"
optimiser_of = WeakTensorKeyDictionary()  # {parameter: weak reference to the FlatOptimizer that moves it}
GONE = 20.0  # seconds after which a rank that Horovod says is gone is believed to be


class GradientMean:
    """The mean of the gradients over a replica, by one all-reduce of one buffer.

    Behind the gradients travel, for each parameter, whether a rank has a gradient of it, and for each rank the facts
    in which the ranks of a replica must agree, each rank writing into a place of its own. So a difference is found in
    the same call, on all ranks, and costs no message. Where the buffer stays on a device, which must not be waited for,
    the facts are read one call later; a rank that lacks a gradient must wait to hear whether another one has it.

    Args:
        mean: replaces a tensor by its mean over the replica, in place.
        ranks: world ranks of the replica.
        place: of this rank among them.
        everyone: function giving all ranks' values of one, for what cannot be told otherwise; collective.
        on_host: whether a buffer on a device must go through the host.
    """

    def __init__(self, mean, ranks, place, everyone, on_host):
        self._mean, self.ranks, self._place = mean, ranks, place
        self._everyone, self._on_host, self._calls, self._unread = everyone, on_host, 0, None

    def __call__(self, params):
        """Average the gradients of `params`, a list; see Topology.average_gradients."""
        params = [p for p in params if p.requires_grad or p.grad is not None]
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            raise RuntimeError(SPARSE)
        if not params:
            return
        optimisers = {optimiser_of.get(p, lambda: None)() for p in params} - {None}
        for optimiser in optimisers:
            optimiser.averaged = True
        self._read()
        sizes, m = [p.numel() for p in params], len(self.ranks)
        dtype = torch.float32
        for p in params:
            dtype = torch.promote_types(dtype, p.dtype)
        has = [p.grad is not None for p in params]
        gradients = [p.grad.reshape(-1) if yes else p.new_zeros(p.numel()) for p, yes in zip(params, has, strict=True)]
        flat = torch.cat([*gradients, *self._tail(params, has, dtype, sum(o.steps for o in optimisers))])
        travelled = self._reduce(flat, params)
        present, facts = torch.split(travelled[sum(sizes) :], [len(params), m * len(FACTS)])
        self._unread = Unread(facts * m, m, FIRST_FACTS if self._calls == 1 else FACTS)
        if travelled.device.type == "cpu":
            self._read()
        if not all(has):
            has = (present > 0).tolist()
        pieces = torch.split(flat[: sum(sizes)], sizes)
        mine = [(p, piece.view(p.shape)) for p, piece, yes in zip(params, pieces, has, strict=True) if yes]
        for p, _ in mine:
            if p.grad is None:
                p.grad = torch.empty_like(p)
        if mine:
            torch._foreach_copy_([p.grad for p, _ in mine], [piece for _, piece in mine])

    def _tail(self, params, has, dtype, steps):
        """(1 for each parameter that has a gradient here, the facts in this rank's place)."""
        device = params[0].device
        # all weights at first, then one parameter after the other: a difference is in all of them, and stays
        looked_at = params if not self._calls else [params[self._calls % len(params)]]
        self._calls += 1
        facts = torch.zeros(len(self.ranks), len(FACTS), dtype=dtype, device=device)
        mask = (1 << WIDTH) - 1
        shapes = hash(tuple(tuple(p.shape) for p in params)) & mask
        facts[self._place, 0], facts[self._place, 2] = shapes, steps & mask
        facts[self._place, 1] = bits(looked_at) & mask
        # numbers of the device's own: a list would be copied to it, and waited for
        yes, no = facts.new_ones(()), facts.new_zeros(())
        return torch.stack([yes if here else no for here in has]), facts.view(-1)

    def _reduce(self, flat, params):
        """The mean of `flat`, in its place; as it travelled, on the host where it went that way."""
        travels = flat.cpu() if self._on_host else flat
        with waits("the other ranks in average_gradients", called("calls of average_gradients", self.ranks)):
            try:
                self._mean(travels)
            except RuntimeError as error:
                self._explain(error, params)
        if travels is not flat:
            flat.copy_(travels)
        return travels

    def _explain(self, error, params):
        """Raise what lies behind an error of Horovod's, which all ranks of the replica get."""
        if "shape" in str(error):
            facts = [len(params), sum(p.numel() for p in params)]
            names = ("the number of parameters that need a gradient", "the number of their weights")
            compare(names, self._everyone(facts), self.ranks, WHERE, shown=names)
        if "shut down" in str(error):
            # the rank that is gone has been or will be noticed, and the line about it says more
            time.sleep(GONE)
            raise Disagreement("average_gradients: another rank of the replica has ended", min(self.ranks)) from None
        raise error

    def _read(self):
        if self._unread is not None:
            unread, self._unread = self._unread, None
            compare(unread.names, unread.rows(), self.ranks, WHERE, shown=FACTS[2:])


class Unread:
    """The facts of all ranks, on their way from the device."""

    def __init__(self, facts, m, names):
        self._facts, self._m, self._arrived, self.names = facts, m, None, names
        if facts.is_cuda:
            self._facts = torch.empty(facts.shape, dtype=facts.dtype, pin_memory=True).copy_(facts, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def rows(self):
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._facts.round().view(self._m, -1).tolist()
