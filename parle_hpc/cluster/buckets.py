"""Gradients in buckets, each sent off once its gradients are there, in an order that does not depend on timing."""

from functools import partial

import torch

SPARSE = "sparse gradients are not supported: the state is dense"


def cut(sizes, least):
    """Slices of things of these sizes, from the last to the first, each of `least` or more; the rest comes last."""
    slices, end, filled = [], len(sizes), 0
    for i in range(len(sizes) - 1, 0, -1):
        filled += sizes[i]
        if filled >= least:
            slices.append(slice(i, end))
            end, filled = i, 0
    return [*slices, slice(0, end)]


class Buckets:
    """The gradients of parameters on their way, in buckets of `least` bytes: those of the last parameters come first.

    Bucket k is sent after bucket k - 1, and the last one by `send` alone, so that it can take along what is known then.

    Args:
        params: list of parameters.
        least: bytes of gradients in a bucket; infinite for one bucket.
        start: function (buffer, name) that sends a buffer off and gives a handle of it.

    Attributes:
        slices: of params, a bucket each.
        sent: (buffer, handle) of the buckets that are under way, in this order.
    """

    def __init__(self, params, least, start):
        self.params, self._start = params, start
        self.slices = cut([p.nbytes for p in params], least)
        self.dtype = torch.float32
        for p in params:
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.sent, self._awaited, self._versions = [], [], []
        self._hooks = [
            p.register_post_accumulate_grad_hook(partial(self._arrived, k))
            for k, part in enumerate(self.slices[:-1])
            for p in params[part]
            if p.requires_grad
        ]

    def of(self, params):
        """Whether these are the buckets of `params`."""
        return len(params) == len(self.params) and all(p is q for p, q in zip(params, self.params, strict=True))

    def follow(self):
        """Send buckets off during the backward pass that comes next, unless some have been since `clear`."""
        if not self.sent:
            self._awaited = [{id(p) for p in self.params[part]} for part in self.slices[:-1]]

    def _arrived(self, k, p):
        if not self._awaited:
            return
        self._awaited[k].discard(id(p))
        while len(self.sent) < len(self._awaited) and not self._awaited[len(self.sent)]:
            part = self.params[self.slices[len(self.sent)]]
            self._versions += [(p, p.grad, p.grad._version) for p in part]
            try:
                self.send()
            except RuntimeError:
                # whoever sends the rest meets it again
                self._awaited = []

    def send(self, *behind):
        """Send the next bucket, zeros for gradients that are not there, and vectors that travel behind it."""
        k = len(self.sent)
        part = self.params[self.slices[k]]
        if any(p.grad is not None and p.grad.is_sparse for p in part):
            raise RuntimeError(SPARSE)
        gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in part]
        buffer = torch.cat([*gradients, *behind]).to(self.dtype)
        # the last one has the same name, however many there are: ranks that cut otherwise meet there
        number = f" {k}" if k + 1 < len(self.slices) else ""
        self.sent.append((buffer, self._start(buffer, f"gradients {self.dtype}{number}")))

    def changed(self):
        """Whether a gradient has changed since it was sent off."""
        return any(p.grad is not grad or grad._version != version for p, grad, version in self._versions)

    def clear(self):
        """All has arrived."""
        self.sent, self._awaited, self._versions = [], [], []

    def close(self):
        for hook in self._hooks:
            hook.remove()
