"""Flat buffers over a network's parameters, and matching pieces of both.

A state such as x^a or v_y is one contiguous vector, so that a reduction or a copy of it is one call. The equations
run over pieces: on a CPU the pieces of one block fit into the cache, so that the passes of an equation read memory
once; on a GPU one block holds a whole parameter group, so that each pass is one kernel launch.
"""

import torch

CACHE_BLOCK = 1 << 17  # elements; the six vectors of an inner step, in float32, are 3 MB


def in_memory_order(tensor):
    """A dense tensor as a vector, shape (numel,), in the order of its memory, which it shares."""
    return tensor.as_strided((tensor.numel(),), (1,))


class Layout:
    """Where each parameter of an optimiser's groups lies in a flat buffer of shape (N,).

    Attributes:
        params: the parameters, in the order of the groups.
        dtype: type of the state, float32 or, where a parameter is float64, float64.
        blocks: list of (group index, pieces); a piece is (parameter index, start, stop).

    Raises ValueError where parameters are on several devices, not floating-point, or not dense in memory.
    """

    def __init__(self, groups):
        self.params = [p for group in groups for p in group["params"]]
        self.device = self.params[0].device
        self.dtype = torch.float32
        for p in self.params:
            if p.device != self.device:
                raise ValueError(f"all parameters must be on one device, found {self.device} and {p.device}")
            if not p.is_floating_point():
                raise ValueError(f"parameters must be floating-point, found {p.dtype}")
            if torch.empty_like(p).stride() != p.stride():
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is a view with gaps; make it contiguous")
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.needs_master = any(p.dtype != self.dtype for p in self.params)
        self.sizes = [p.numel() for p in self.params]
        self.blocks = self._cut([len(group["params"]) for group in groups])

    def _cut(self, counts):
        limit = CACHE_BLOCK if self.device.type == "cpu" else sum(self.sizes) + 1
        blocks, index = [], 0
        for group, count in enumerate(counts):
            pieces, filled = [], 0
            for i in range(index, index + count):
                for start in range(0, self.sizes[i], limit):
                    stop = min(start + limit, self.sizes[i])
                    if pieces and filled + stop - start > limit:
                        blocks.append((group, pieces))
                        pieces, filled = [], 0
                    pieces.append((i, start, stop))
                    filled += stop - start
            if pieces:
                blocks.append((group, pieces))
            index += count
        return blocks

    def zeros(self):
        """A new flat buffer, shape (N,)."""
        return torch.zeros(sum(self.sizes), dtype=self.dtype, device=self.device)

    def vectors(self, flat):
        """Views of a flat buffer, one vector for each parameter."""
        return torch.split(flat, self.sizes)

    def live(self):
        """The live weights, one vector for each parameter, sharing their memory."""
        return [in_memory_order(p.detach()) for p in self.params]

    def gradients(self):
        """The gradients in the state's type, one vector for each parameter, or None where a parameter has none."""
        return [None if p.grad is None else self._gradient(p) for p in self.params]

    def _gradient(self, p):
        if p.grad.is_sparse:
            raise RuntimeError("sparse gradients are not supported: the state is dense")
        g = p.grad if p.grad.stride() == p.stride() else torch.empty_like(p).copy_(p.grad)
        return in_memory_order(g.detach()).to(self.dtype)

    def pack(self, flat):
        """Copy the live weights into a flat buffer."""
        torch._foreach_copy_(list(self.vectors(flat)), self.live())

    def unpack(self, flat):
        """Copy a flat buffer into the live weights."""
        torch._foreach_copy_(self.live(), list(self.vectors(flat)))

    def pieces(self, vectors):
        """For each block the list of its pieces of `vectors` (one vector a parameter; None stays None)."""
        return [[None if vectors[i] is None else vectors[i][a:b] for i, a, b in block] for _, block in self.blocks]
