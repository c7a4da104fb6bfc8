"""Flat buffers over a network's parameters, and matching pieces of both.

A state such as x^a or v_y is one contiguous vector, so that a reduction or a copy of it is one call. The equations
run over pieces: on a CPU the pieces of one block fit into the cache, so that the passes of an equation read memory
once; on a GPU one block holds a whole parameter group, so that each pass is one kernel launch.
"""

from itertools import pairwise

import torch

from ..cluster.buckets import SPARSE
from ..cluster.fingerprint import digest, in_memory_order

CACHE_BLOCK = 1 << 18  # elements; the six vectors of an inner step, in float32, are 6 MB
OTHER_WEIGHTS = (
    "a weight has another type, device or memory format than when the optimiser was made or first used; make the "
    "optimiser after model.to(...), or load the state_dict of this one into a new one"
)
SMALL = 1 << 15  # elements of a piece, below which it is joined with neighbours that are small too


class Layout:
    """Where each parameter of an optimiser's groups lies in a flat buffer of shape (N,).

    Args:
        groups: parameter groups.
        place, m: this rank's place in its replica and the replica's number of ranks, among which a state that is
            needed at a coupling alone is divided: each holds a share of ceil(N / m) elements, the last what is left.

    Attributes:
        params: the parameters, in the order of the groups.
        dtype: type of the state, float32 or, where a parameter is float64, float64.
        shares: the slice of the flat buffer that each rank of the replica holds.
        share: this rank's.
        blocks: list of (group index, pieces); a piece is (parameter index, start, stop). They are the same on all ranks
            of a replica.
        runs: for each block slices of its pieces: a run of small neighbours is one vector for a step.
        run_sizes: for each block and run the sizes of its pieces.

    Raises ValueError where parameters are on several devices, not floating-point, or not dense in memory.
    """

    def __init__(self, groups, place=0, m=1):
        self.params = [p for group in groups for p in group["params"]]
        self.device = self.params[0].device
        self.dtype = torch.float32
        for p in self.params:
            if p.device != self.device:
                raise ValueError(f"all parameters must be on one device, found {self.device} and {p.device}")
            if not p.is_floating_point():
                raise ValueError(f"parameters must be floating-point, found {p.dtype}")
            if not dense(p):
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is a view with gaps; make it contiguous")
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.needs_master = any(p.dtype != self.dtype for p in self.params)
        self.sizes = [p.numel() for p in self.params]
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.numel = sum(self.sizes)
        part = -(-self.numel // m)
        self.shares = [slice(min(b * part, self.numel), min((b + 1) * part, self.numel)) for b in range(m)]
        self.share = self.shares[place]
        self.blocks = self._cut([len(group["params"]) for group in groups])
        self.runs = [self._runs(pieces) for _, pieces in self.blocks]
        self.run_sizes = [
            [[b - a for _, a, b in pieces[run]] for run in runs]
            for (_, pieces), runs in zip(self.blocks, self.runs, strict=True)
        ]
        self._spans = [
            [self._span(pieces[run]) for run in runs] for (_, pieces), runs in zip(self.blocks, self.runs, strict=True)
        ]
        self._shared = [
            [(j, a - spans[j][0], b - spans[j][0]) for j, a, b in self._within(spans, self.share)]
            for spans in self._spans
        ]
        self._memory = self._live = self._live_pieces = None
        self._types = [kind[:2] for kind in self._kinds()]
        self.settle()

    def settle(self):
        """Take the weights' types and memory formats for those of the state. Raises RuntimeError where it cannot."""
        kinds = self._kinds()
        if [kind[:2] for kind in kinds] != self._types or not all(map(dense, self.params)):
            raise RuntimeError(OTHER_WEIGHTS)
        self._settled, self._strides = kinds, [stride for *_, stride in kinds]

    def _kinds(self):
        return [(p.dtype, p.device, p.stride()) for p in self.params]

    @property
    def on_cpu(self):
        """Whether a value can be read at any time; a device would be waited for."""
        return self.device.type == "cpu"

    @property
    def facts(self):
        """{what a message calls it: number} of what must be the same on all ranks."""
        return {
            "the number of parameters": len(self.params),
            "the number of weights": self.numel,
            "the shapes of the parameters": digest([tuple(p.shape) for p in self.params]),
            "the types of the parameters": digest([str(p.dtype) for p in self.params]),
            "the memory formats of the parameters": digest(self._strides),
        }

    def _cut(self, counts):
        limit = CACHE_BLOCK if self.on_cpu else self.numel + 1
        blocks, index = [], 0
        for group, count in enumerate(counts):
            pieces, filled = [], 0
            for i in range(index, index + count):
                for start, stop in pairwise([*range(0, self.sizes[i], limit), self.sizes[i]]):
                    if pieces and filled + stop - start > limit:
                        blocks.append((group, pieces))
                        pieces, filled = [], 0
                    pieces.append((i, start, stop))
                    filled += stop - start
            if pieces:
                blocks.append((group, pieces))
            index += count
        return blocks

    def _runs(self, pieces):
        """A call for each small tensor costs a CPU more than copying several into one does."""
        joins = [self.on_cpu and stop - start < SMALL for _, start, stop in pieces]
        begins = [j for j in range(len(pieces)) if not (j and joins[j - 1] and joins[j])]
        return [slice(a, b) for a, b in pairwise([*begins, len(pieces)])]

    def zeros(self, share=False):
        """A new flat buffer, shape (N,), or of the size of this rank's share."""
        size = self.share.stop - self.share.start if share else self.numel
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def vectors(self, flat):
        """Views of a flat buffer, one vector for each parameter."""
        return torch.split(flat, self.sizes)

    def live(self):
        """The live weights, one vector for each parameter, sharing their memory."""
        memory = [p.data_ptr() for p in self.params]
        if memory != self._memory:
            if self._kinds() != self._settled:
                raise RuntimeError(OTHER_WEIGHTS)
            self._memory, self._live = memory, [in_memory_order(p.detach()) for p in self.params]
            self._live_pieces = self.pieces(self._live)
        return self._live

    def live_runs(self):
        """For each block its live weights, one vector a run."""
        return [joined(pieces, runs) for pieces, runs in zip(self.live_pieces(), self.runs, strict=True)]

    def live_pieces(self):
        """`pieces` of the live weights."""
        self.live()
        return self._live_pieces

    def gradients(self):
        """The gradients in the state's type, contiguous, or None where a parameter has none."""
        return [self._gradient(*each) for each in zip(self.params, self._strides, strict=True)]

    def _gradient(self, p, stride):
        g = p.grad if p.requires_grad else None
        if g is None:
            return None
        if g.is_sparse:
            raise RuntimeError(SPARSE)
        if g.stride() != stride:
            g = torch.empty_like(p).copy_(g)
        if not g.is_contiguous():
            g = in_memory_order(g)
        return g if g.dtype == self.dtype else g.to(self.dtype)

    def pack(self, flat):
        """Copy the live weights into a flat buffer."""
        torch._foreach_copy_(list(self.vectors(flat)), self.live())

    def packed(self):
        """A new flat buffer with the live weights."""
        flat = self.zeros()
        self.pack(flat)
        return flat

    def unpack(self, flat):
        """Copy a flat buffer into the live weights."""
        torch._foreach_copy_(self.live(), list(self.vectors(flat)))

    def holds(self, flat):
        """Whether the live weights are those of a flat buffer, in their own type."""
        vectors = zip(self.live(), self.vectors(flat), strict=True)
        return all(torch.equal(live, v if v.dtype == live.dtype else v.to(live.dtype)) for live, v in vectors)

    def rounded(self, flat):
        """A flat buffer with the precision that the live weights have."""
        if not self.needs_master:
            return flat
        vectors = zip(self.vectors(flat), self.params, strict=True)
        return torch.cat([v.to(p.dtype).to(self.dtype) for v, p in vectors])

    def shaped(self, flat):
        """Views of a flat buffer in the shapes of the parameters, whatever their memory format."""
        views = zip(self.vectors(flat), self.params, self._strides, strict=True)
        return [v.as_strided(p.shape, stride) for v, p, stride in views]

    def marked(self, spans):
        """Bool of shape (N,), true inside the slices."""
        found = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        for span in spans:
            found[span] = True
        return found

    def span_of_block(self, i):
        """The slice of a flat buffer that is block i."""
        return slice(self._spans[i][0][0], self._spans[i][-1][1])

    def frozen(self):
        """Slices of a flat buffer that are parameters which need no gradient."""
        spans = zip(self.params, self.offsets, self.sizes, strict=True)
        return [slice(a, a + size) for p, a, size in spans if not p.requires_grad]

    def pieces(self, vectors):
        """For each block the list of its pieces of `vectors`, contiguous tensors, one a parameter; None stays None."""
        return [[self._piece(vectors[i], a, b) for i, a, b in block] for _, block in self.blocks]

    def _piece(self, vector, start, stop):
        return vector if vector is None or stop - start == vector.numel() else in_memory_order(vector)[start:stop]

    def _span(self, pieces):
        """Where neighbouring pieces lie in a flat buffer, (start, stop)."""
        (first, a, _), (last, _, b) = pieces[0], pieces[-1]
        return self.offsets[first] + a, self.offsets[last] + b

    def _within(self, spans, part):
        """(index, start, stop) of what lies of spans, (start, stop), in a slice of the flat buffer."""
        inside = [(j, max(start, part.start), min(stop, part.stop)) for j, (start, stop) in enumerate(spans)]
        return [(j, start, stop) for j, start, stop in inside if start < stop]

    def _cut_out(self, flat, spans):
        """{index: view} of what a flat buffer, whole or a share's, has of spans."""
        part = slice(0, self.numel) if flat.numel() == self.numel else self.share
        return {j: flat[a - part.start : b - part.start] for j, a, b in self._within(spans, part)}

    def in_runs(self, flat):
        """For each block the vectors of a flat buffer that its runs are; of a share's buffer what it has of them."""
        return [list(self._cut_out(flat, spans).values()) for spans in self._spans]

    def of_share(self, i, vectors):
        """Of block i's vectors, one a run, what belongs to this rank's share: as `in_runs` of a share's buffer."""
        return [self._piece(vectors[j], a, b) for j, a, b in self._shared[i]]

    def slices(self, flat):
        """For each block its part of a flat buffer, one vector; of a share's buffer None where it has nothing of it."""
        found = self._cut_out(flat, [(spans[0][0], spans[-1][1]) for spans in self._spans])
        return [found.get(i) for i in range(len(self.blocks))]


def dense(p):
    """Whether a tensor lies in memory without gaps."""
    return torch.empty_like(p).stride() == p.stride()


def joined(pieces, runs):
    """One vector a run: the piece itself, or a copy of several in a row."""
    join = torch._utils._flatten_dense_tensors
    return [in_memory_order(pieces[run.start]) if run.stop - run.start == 1 else join(pieces[run]) for run in runs]


def cut(vectors, sizes):
    """The views that vectors, one a run, consist of."""
    return [piece for vector, parts in zip(vectors, sizes, strict=True) for piece in vector.split(parts)]
