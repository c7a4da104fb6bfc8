"""An optimiser whose state is flat: what Parle, Entropy-SGD and Elastic-SGD have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .layout import Layout, cut, in_memory_order, joined

SGD_ROUND = 25  # SGD and Elastic-SGD have no rounds, but are counted, reported and saved in rounds of this many steps


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

    flat_names: tuple[str, ...] = ()  # attributes that are flat buffers and belong to the state
    share_names: tuple[str, ...] = ()  # those of them of which a rank holds its share alone

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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the state exists: the flat buffers, and a reduction under way, have the length they have."""
        if self._layout is not None:
            raise RuntimeError(
                f"{type(self).__name__} cannot take more parameters after it is made: its state is flat and may be "
                "in flight between the replicas; make a new optimiser over all parameters"
            )
        super().add_param_group(param_group)

    @property
    def coupling_wait_seconds(self) -> float:
        """Seconds spent waiting for other ranks so far."""
        return sum(reference.wait_seconds for reference in self._references())

    @property
    def coupling_bytes_sent(self) -> int:
        """Payload of this rank so far, in bytes."""
        return sum(reference.bytes_sent for reference in self._references())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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

    # What an algorithm says: how it moves, and what of it travels between the replicas.

    def _step(self) -> None:
        """One mini-batch, under no_grad, and at the end of a round the coupling."""
        raise NotImplementedError

    def _references(self) -> list[Any]:
        """The references (coupling) that may be under way."""
        raise NotImplementedError

    def _newest_reference(self) -> torch.Tensor:
        """The reference as it is now, shape (N,). Collective over the replicas."""
        raise NotImplementedError

    def _take_weights(self) -> None:
        """Begin with the weights as the network has them."""
        raise NotImplementedError

    def _restart(self) -> None:
        """What must travel until the next coupling sets off."""
        raise NotImplementedError

    def _restore_weights(self) -> None:
        """Give the network the weights of a state that was restored at the end of a round."""
        raise NotImplementedError

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
    def at_reference(self) -> Iterator[None]:
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

    def state_dict(self) -> dict[str, Any]:
        """torch's own state dict, with the flat buffers and the counter under "flat". The weights are the model's."""
        self._begin()
        state = super().state_dict()
        state["flat"] = {name: flat.clone() for name, flat in self._flat_state().items()}
        state["flat"]["steps"] = self.steps
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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

    def finish(self) -> None:
        """Wait for what is under way between the replicas, so that MPI may end. Collective over the replicas."""
        for reference in self._references():
            reference.collect()

    @property
    def size(self) -> int:
        """Elements of a whole flat buffer, N."""
        return self._layout.numel

    @property
    def share(self) -> slice:
        """The slice of a flat buffer that is this rank's share."""
        return self._layout.share

    def saved(self) -> dict[str, tuple[torch.Tensor, str]]:
        """{name: (flat tensor, kind)}: what a checkpoint needs at the end of a round, beside the step and the groups.

        Of kind "whole" all ranks of the replica have the same (N,), of kind "share" each has its share, and "own" is a
        rank's own. The live weights are the state's.
        """
        self._begin()
        return {name: (flat, self._kind(name, flat)) for name, flat in self._flat_state().items()}

    def _kind(self, name, flat):
        return "whole" if flat.numel() == self._layout.numel else "share"

    def restore(self, saved: dict[str, np.ndarray], steps: int, groups: list[dict[str, Any]]) -> None:
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
            for group, settings in zip(self.param_groups, groups, strict=True):
                group.update(settings)
            self.steps = steps
            self._restore_weights()
            self._restart()

    def _flat_state(self):
        """The flat buffers that the state consists of, by name."""
        state = {name: getattr(self, name) for name in self.flat_names}
        return state if self._master is None else {**state, "_master": self._master}
