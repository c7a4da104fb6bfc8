"""Gradients, averaged over the ranks of a replica: each parameter's with its own, whatever a rank has of them."""

import math
import time

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import Disagreement
from .buckets import Buckets
from .fingerprint import bits, compare
from .waiting import called, waits

WIDTH = 21  # bits of a number that survives division by m, and times m again, in float32
START = "the weights at the start (call topology.broadcast before the first step)"
FACTS = ("the shapes of the parameters", "the weights", "the number of optimiser steps")
FIRST_FACTS = (FACTS[0], START, FACTS[2])
WHERE = "average_gradients: the ranks of a replica do not agree"
NUMBER = "the number of buckets (every rank or none calls follow_backward before its first mini-batch)"
CHANGED = (
    "average_gradients: gradients have changed since follow_backward had them sent; call it before the last backward "
    "pass of a mini-batch alone, and change them after average_gradients"
)
UNPAIRED = "after follow_backward and the backward pass comes average_gradients, of the same parameters"
optimiser_of = WeakTensorKeyDictionary()  # {parameter: weak reference to the FlatOptimizer that moves it}
GONE = 20.0  # seconds after which a rank that Horovod says is gone is believed to be


def some(tensors, function):
    """The tensors as a list, in which there are some."""
    found = list(tensors)
    if not found:
        raise ValueError(
            f"{function} was given no tensors; a generator such as model.parameters(), or filter(...), is used up once "
            "something has gone through it: give a list"
        )
    return found


def with_gradients(params):
    """Those that have or get a gradient, as a list."""
    return [p for p in params if p.requires_grad or p.grad is not None]


def shapes(params):
    """A number for the shapes of the parameters."""
    return hash(tuple(tuple(p.shape) for p in params))


class GradientMean:
    """The mean of the gradients over a replica, by one all-reduce of one buffer, or of some buckets in a fixed order.

    Behind the gradients travel, for each parameter, whether a rank has a gradient of it, and for each rank the facts
    in which the ranks of a replica must agree, each rank writing into a place of its own. So a difference is found in
    the same call, on all ranks, and costs no message. Where the buffer stays on a device, which must not be waited for,
    the facts are read one call later; a rank that lacks a gradient must wait to hear whether another one has it.

    Args:
        start: function (tensor, name) that begins to replace a tensor by its mean over the replica, and gives a handle.
        finish: function (handle) that waits for it.
        ranks: world ranks of the replica.
        place: of this rank among them.
        everyone: function giving all ranks' values of one, for what cannot be told otherwise; collective.
        on_host: whether a buffer on a device must go through the host.
        least: bytes of gradients in a bucket of `follow`; infinite for one buffer.
    """

    def __init__(self, start, finish, ranks, place, everyone, on_host, least):
        self._start, self._finish, self.ranks, self._place = start, finish, ranks, place
        self._everyone, self._on_host, self._calls, self._unread = everyone, on_host, 0, None
        self.least, self._buckets = least, None

    def follow(self, params):
        """Send buckets of `params`, a list, during the backward pass that comes next; see Topology.follow_backward."""
        params = with_gradients(params)
        if self.least == math.inf or not params or (self._on_host and params[0].device.type != "cpu"):
            return
        if not self._followed(params):
            if self._buckets is not None:
                self._buckets.close()
            self._buckets = Buckets(params, self.least, self._begin)
        self._buckets.follow()

    def _followed(self, params):
        """Whether these are the parameters of the last `follow`."""
        if self._buckets is None or self._buckets.of(params):
            return self._buckets is not None
        if self._buckets.sent:
            raise RuntimeError(UNPAIRED)
        return False

    def __call__(self, params):
        """Average the gradients of `params`, a list; see Topology.average_gradients."""
        params = with_gradients(params)
        if not params:
            return
        optimisers = {optimiser_of.get(p, lambda: None)() for p in params} - {None}
        for optimiser in optimisers:
            optimiser.averaged = True
        self._read()
        buckets = self._buckets if self._followed(params) else Buckets(params, math.inf, self._begin)
        has = [p.grad is not None for p in params]
        tail = self._tail(params, has, buckets.dtype, sum(o.steps for o in optimisers))
        present = self._reduce(buckets, tail)
        buffers, changed = [buffer for buffer, _ in buckets.sent], buckets.changed()
        buckets.clear()
        if changed:
            raise RuntimeError(CHANGED)
        if not all(has):
            has = (present > 0).tolist()
        mine = []
        for part, buffer in zip(buckets.slices, buffers, strict=True):
            sizes = [p.numel() for p in params[part]]
            pieces = torch.split(buffer[: sum(sizes)], sizes)
            mine += [(p, q.view(p.shape)) for p, q, yes in zip(params[part], pieces, has[part], strict=True) if yes]
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
        facts[self._place, 0], facts[self._place, 2] = shapes(params) & mask, steps & mask
        facts[self._place, 1] = bits(looked_at) & mask
        # numbers of the device's own: a list would be copied to it, and waited for
        yes, no = facts.new_ones(()), facts.new_zeros(())
        return torch.stack([yes if here else no for here in has]), facts.view(-1)

    def _reduce(self, buckets, tail):
        """Have the means of all buckets in place; for each parameter, whether a rank has its gradient: > 0 where so."""
        m, first = len(self.ranks), self._calls == 1
        with waits("the other ranks in average_gradients", called("calls of average_gradients", self.ranks)):
            try:
                while len(buckets.sent) < len(buckets.slices) - 1:
                    buckets.send()
                buckets.send(*tail)
                *others, last = buckets.sent
                # what travels behind it says whether the others fit
                told = self._arrive(*last)[-sum(map(len, tail)) :]
                present, facts = torch.split(told, [len(part) for part in tail])
                self._unread = Unread(facts * m, m, FIRST_FACTS if first else FACTS)
                if first or told.device.type == "cpu":
                    self._read()
                for bucket in others:
                    self._arrive(*bucket)
            except Disagreement:
                raise
            except RuntimeError as error:
                self._explain(error, buckets)
        return present

    def _begin(self, buffer, name):
        travels = buffer.cpu() if self._on_host else buffer
        return travels, self._start(travels, name)

    def _arrive(self, buffer, way):
        """The mean as it travelled, on the host where it went that way; it is in the buffer, too."""
        travels, handle = way
        self._finish(handle)
        if travels is not buffer:
            buffer.copy_(travels)
        return travels

    def _explain(self, error, buckets):
        """Raise what lies behind an error of Horovod's, which all ranks of the replica get."""
        if "shape" in str(error):
            params = buckets.params
            facts = [len(params), sum(p.numel() for p in params), shapes(params), len(buckets.slices)]
            names = ("the number of parameters that need a gradient", "the number of their weights", FACTS[0], NUMBER)
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
