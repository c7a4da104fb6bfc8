"""Flat buffers over a network's parameters, matching pieces of both, and an optimiser whose state they are.

A state such as x^a or v_y is one contiguous vector, so that a reduction or a copy of it is one call. The equations
run over pieces: on a CPU the pieces of one block fit into the cache, so that the passes of an equation read memory
once; on a GPU one block holds a whole parameter group, so that each pass is one kernel launch.
"""

from contextlib import contextmanager
from itertools import pairwise

import torch

CACHE_BLOCK = 1 << 18  # elements; the six vectors of an inner step, in float32, are 6 MB
SMALL = 1 << 15  # elements of a piece, below which it is joined with neighbours that are small too


def in_memory_order(tensor):
    """A dense tensor as a vector, shape (numel,), in the order of its memory, which it shares."""
    return tensor.as_strided((tensor.numel(),), (1,))


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
            if torch.empty_like(p).stride() != p.stride():
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
        self._strides = [p.stride() for p in self.params]
        self._memory = self._live = self._live_pieces = None

    def _cut(self, counts):
        limit = CACHE_BLOCK if self.device.type == "cpu" else self.numel + 1
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
        joins = [self.device.type == "cpu" and stop - start < SMALL for _, start, stop in pieces]
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
            self._memory, self._live = memory, [in_memory_order(p.detach()) for p in self.params]
            self._live_pieces = self.pieces(self._live)
        return self._live

    def live_pieces(self):
        """`pieces` of the live weights."""
        self.live()
        return self._live_pieces

    def gradients(self):
        """The gradients in the state's type, contiguous, or None where a parameter has none."""
        return [self._gradient(*each) for each in zip(self.params, self._strides, strict=True)]

    def _gradient(self, p, stride):
        g = p.grad
        if g is None:
            return None
        if g.is_sparse:
            raise RuntimeError("sparse gradients are not supported: the state is dense")
        if g.stride() != stride:
            g = torch.empty_like(p).copy_(g)
        if not g.is_contiguous():
            g = in_memory_order(g)
        return g if g.dtype == self.dtype else g.to(self.dtype)

    def pack(self, flat):
        """Copy the live weights into a flat buffer."""
        torch._foreach_copy_(list(self.vectors(flat)), self.live())

    def unpack(self, flat):
        """Copy a flat buffer into the live weights."""
        torch._foreach_copy_(self.live(), list(self.vectors(flat)))

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


def joined(pieces, runs):
    """One vector a run: the piece itself, or a copy of several in a row."""
    join = torch._utils._flatten_dense_tensors
    return [in_memory_order(pieces[run.start]) if run.stop - run.start == 1 else join(pieces[run]) for run in runs]


def cut(vectors, sizes):
    """The views that vectors, one a run, consist of."""
    return [piece for vector, parts in zip(vectors, sizes, strict=True) for piece in vector.split(parts)]


def require(condition, name, value, right):
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {right}")


class FlatOptimizer(torch.optim.Optimizer):
    """What Parle, Entropy-SGD and Elastic-SGD share: flat state, a step counter, and the way to the reference.

    Attributes:
        steps: mini-batches done so far, k.
        round_length: mini-batches in a round, for counting and reporting.
        gamma, rho: of this round or step, None where the algorithm has none.
        coupling_seconds: time that the coupling has taken so far: waiting for the mean and moving x^a, or x.
    """

    flat_names = ()  # attributes that are flat buffers and belong to the state
    share_names = ()  # those of them of which a rank holds its share alone

    def __init__(self, params, defaults, place=0, m=1):
        require(defaults["lr"] >= 0, "lr", defaults["lr"], "at least 0")
        require(0 <= defaults["momentum"] < 1, "momentum", defaults["momentum"], "in [0, 1)")
        require(defaults["weight_decay"] >= 0, "weight_decay", defaults["weight_decay"], "at least 0")
        self._layout = None
        super().__init__(params, defaults)
        self._layout = Layout(self.param_groups, place, m)
        self._master = self._layout.zeros() if self._layout.needs_master else None
        for name in self.flat_names:
            setattr(self, name, self._layout.zeros(share=name in self.share_names))
        # the buffers stay where they are, so a step need not cut them up
        self._runs = {name: self._layout.in_runs(getattr(self, name)) for name in self.flat_names}
        self.steps = 0
        self.coupling_seconds = 0.0
        self._begun = False

    def add_param_group(self, param_group):
        """Refused once the state exists: the flat buffers, and a reduction under way, have the length they have."""
        if self._layout is not None:
            raise RuntimeError(
                f"{type(self).__name__} cannot take more parameters after it is made: its state is flat and may be "
                "in flight between the replicas; make a new optimiser over all parameters"
            )
        super().add_param_group(param_group)

    @property
    def coupling_wait_seconds(self):
        """Seconds spent waiting for other ranks so far."""
        return sum(reference.wait_seconds for reference in self._references())

    @property
    def coupling_bytes_sent(self):
        """Payload of this rank so far, in bytes."""
        return sum(reference.bytes_sent for reference in self._references())

    @torch.no_grad()
    def step(self, closure=None):
        """One mini-batch, with .grad as it stands; what `closure` returns.

        Collective over the replicas at the end of a round, for Elastic-SGD always.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._begin()
        self._step()
        self.steps += 1
        return loss

    def _begin(self):
        """Take the weights as they are at the first use, so that a broadcast may come after the constructor."""
        if not self._begun:
            self._begun = True
            if self._master is not None:
                self._layout.pack(self._master)
            self._take_weights()

    def _blocks(self, *names):
        """(index, group, lists, weights) of each block, in which the equations are to update their first list.

        lists are (weights, gradients, states...) with weight decay in the gradients, without the parameters that have
        no gradient, and None where none has one; weights are the block's, one vector a run. names: of the flat buffers.
        """
        layout, states = self._layout, [self._runs[name] for name in names]
        gradients = layout.pieces(layout.gradients())
        lives = layout.live_pieces() if self._master is None else layout.pieces(layout.vectors(self._master))
        for i, (runs, pieces) in enumerate(zip(layout.runs, lives, strict=True)):
            group = self.param_groups[layout.blocks[i][0]]
            weights, lists = joined(pieces, runs), None
            has = [j for j, g in enumerate(gradients[i]) if g is not None]
            if len(has) == len(pieces):
                lists = [weights, joined(gradients[i], runs), *(state[i] for state in states)]
            elif has:
                apart = [cut(vectors, layout.run_sizes[i]) for vectors in (weights, *(state[i] for state in states))]
                apart.insert(1, [g if g is None else in_memory_order(g) for g in gradients[i]])
                lists = [[part[j] for j in has] for part in apart]
            if lists and group["weight_decay"]:
                lists[1] = torch._foreach_add(lists[1], lists[0], alpha=group["weight_decay"])
            yield i, group, lists, weights
            for run, vector, sizes in zip(runs, weights, layout.run_sizes[i], strict=True):
                if len(sizes) > 1:
                    torch.split_with_sizes_copy(vector, sizes, out=pieces[run])

    @contextmanager
    def at_reference(self):
        """The model holds the newest reference inside, and its live weights again, bit for bit, after.

        Collective over the replicas.
        """
        with torch.no_grad():
            self._begin()
            kept = [p.detach().clone() for p in self._layout.params]
            self._layout.unpack(self._newest_reference())
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self._layout.params], kept)

    def state_dict(self):
        """torch's own state dict, with the flat buffers and the counter under "flat". The weights are the model's."""
        self._begin()
        state = super().state_dict()
        state["flat"] = {name: flat.clone() for name, flat in self._flat_state().items()}
        state["flat"]["steps"] = self.steps
        return state

    def load_state_dict(self, state_dict):
        """Continue where `state_dict` was taken, bit for bit, once the model's weights are loaded too.

        Collective over the replicas. Raises ValueError where the buffers do not fit.
        """
        self.finish()  # what is still under way belongs to the state that goes
        flat = dict(state_dict["flat"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "flat"})
        for name, mine in self._flat_state().items():
            require(
                name in flat and flat[name].shape == mine.shape, f"state {name}", name in flat, f"{mine.numel()} floats"
            )
            mine.copy_(flat[name])
        self.steps = flat["steps"]
        self._begun = True
        self._restart()

    def finish(self):
        """Wait for what is under way between the replicas, so that MPI may end. Collective over the replicas."""
        for reference in self._references():
            reference.collect()

    @property
    def size(self):
        """Elements of a whole flat buffer, N."""
        return self._layout.numel

    @property
    def share(self):
        """The slice of a flat buffer that is this rank's share."""
        return self._layout.share

    def saved(self):
        """{name: (flat tensor, kind)}: what a checkpoint needs at the end of a round, beside the step and the groups.

        Of kind "whole" all ranks of the replica have the same (N,), of kind "share" each has its share, and "own" is a
        rank's own. The live weights are the state's.
        """
        self._begin()
        return {name: (flat, self._kind(name, flat)) for name, flat in self._flat_state().items()}

    def _kind(self, name, flat):
        return "whole" if flat.numel() == self._layout.numel else "share"

    def restore(self, saved, steps, groups):
        """Continue from what `saved` gave.

        Args:
            saved: {name: NumPy array}, whole where the kind is "whole" or "share", of which this rank takes its share.
            steps: mini-batches done.
            groups: the settings of the parameter groups, without their parameters.

        Collective over the replicas.
        """
        self._begin()
        with torch.no_grad():
            self.finish()  # what is still under way belongs to the state that goes
            for name, (flat, kind) in self.saved().items():
                if name in saved:
                    values = torch.from_numpy(saved[name])
                    flat.copy_(values[self._layout.share] if kind == "share" else values)
            for group, values in zip(self.param_groups, groups, strict=True):
                group.update(values)
            self.steps = steps
            self._restore_weights()
            self._restart()

    def _flat_state(self):
        """The flat buffers that the state consists of, by name."""
        state = {name: getattr(self, name) for name in self.flat_names}
        return state if self._master is None else {**state, "_master": self._master}
