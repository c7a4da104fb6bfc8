"""An optimiser whose state is flat: what Parle, Entropy-SGD and Elastic-SGD have in common."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..cluster.fingerprint import digest
from ..cluster.gradients import optimiser_of
from ..coupling.terms import Terms
from . import portable
from .layout import Layout, cut, in_memory_order, joined
from .outside import Outside

SGD_ROUND = 25  # SGD and Elastic-SGD have no rounds, but are counted, reported and saved in rounds of this many steps


def require(condition, name, value, right):
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {right}")


class FlatOptimizer(torch.optim.Optimizer):
    """What Parle, Entropy-SGD and Elastic-SGD share: flat state, a step counter, and the way to the reference.

    The live weights may be changed from outside at any time: loaded, broadcast, masked, clamped. A changed element is
    taken over: x^a and z (of Elastic-SGD x) take its value, at rest, and until the next coupling so does the
    reference there. A change in mid-round is seen the first time in blocks of up to 262,144 weights, which are taken
    over whole; from then on each element by itself, for which a copy of the weights is kept. A parameter that needs
    no gradient stands still, as a changed one does. The network's type, device and memory format are those of the first
    step from then on.

    Attributes:
        steps: mini-batches done so far, k.
        round_length: mini-batches in a round, for counting and reporting.
        gamma, rho: of this round or step, None where the algorithm has none.
        coupling_seconds: time that the coupling has taken so far: waiting for the mean and moving x^a, or x.
    """

    flat_names: tuple[str, ...] = ()  # attributes that are flat buffers and belong to the state
    share_names: tuple[str, ...] = ()  # those of them of which a rank holds its share alone
    watches_blocks = False  # whether changes from outside are looked for in sums over the blocks

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses to become what hvd.DistributedOptimizer makes of an optimiser."""
        super().__init_subclass__(**options)
        if str(getattr(cls.__init__, "__module__", "")).startswith("horovod"):
            raise TypeError(
                f"hvd.DistributedOptimizer cannot wrap {cls.__name__}; call topology.average_gradients before its step"
            )

    def __init__(self, params, defaults, place=0, m=1):
        require(isinstance(defaults["lr"], torch.Tensor) or defaults["lr"] >= 0, "lr", defaults["lr"], "at least 0")
        require(0 <= defaults["momentum"] < 1, "momentum", defaults["momentum"], "in [0, 1)")
        require(defaults["weight_decay"] >= 0, "weight_decay", defaults["weight_decay"], "at least 0")
        self._layout = None
        super().__init__(params, defaults)
        self._place, self._m, self._replica, self._comm = place, m, None, None
        self.steps = 0
        self.coupling_seconds = 0.0
        self._begun = self._inside = False
        self._validations, self._validated_at = 0, 0
        self._taken = None
        self._lay_out()
        self._master = self._layout.zeros() if self._layout.needs_master else None
        for name in self.flat_names:
            setattr(self, name, self._layout.zeros(share=name in self.share_names))
        self._view()

    def _lay_out(self):
        self._layout = Layout(self.param_groups, self._place, self._m)
        self._outside = Outside(self._layout)
        for p in self._layout.params:
            optimiser_of[p] = weakref.ref(self)

    def _view(self):
        # the buffers stay where they are, so a step need not cut them up
        self._runs = {name: self._layout.in_runs(getattr(self, name)) for name in self.flat_names}
        # what torch's and Horovod's tools look for, which would make a step where they found nothing
        for p, x in zip(self._layout.params, self._layout.shaped(self.x), strict=True):
            self.state[p] = {"x": x}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the state exists: the flat buffers, and a reduction under way, have the length they have."""
        if self._layout is not None:
            raise RuntimeError(
                f"{type(self).__name__} cannot take more parameters after it is made: its state is flat and may be "
                "in flight between the replicas; make a new optimiser over all parameters"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle. Raises TypeError where other ranks take part, which cannot be copied."""
        if self._comm is not None or self._replica is not None:
            raise TypeError(
                f"a {type(self).__name__} that is coupled to other ranks cannot be copied or pickled; take its "
                "state_dict, or one made without comm and replica"
            )
        self._begin()
        apart = ("_layout", "_outside", "_runs", "_mean", "_terms", "state")
        return {name: value for name, value in self.__dict__.items() if name not in apart} | {"state": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's: an optimiser over the parameters that were copied with it."""
        super().__setstate__(state)
        if "steps" in state:  # torch's load_state_dict comes here too, with its own part alone
            self._layout = None
            self._lay_out()
            self._view()
            self._couple_alone()
            self._restart()

    def _set_terms(self, **facts):
        """What must be the same on the ranks that are coupled; `facts` are the algorithm's own, which are numbers."""
        common = {"the algorithm": digest(type(self).__name__), **self._layout.facts}
        shown = ("the number of parameters", "the number of weights", *facts)
        me = weakref.ref(self)
        self._terms = Terms({**common, **facts}, lambda: me()._progress(), shown)

    def _progress(self):
        return self.steps, self._validations, self._validated_at

    def _of_replica(self):
        """(Which of the replicas this one is, how many there are)."""
        return (0, 1) if self._comm is None else (self._comm.Get_rank(), self._comm.Get_size())

    @property
    def coupling_wait_seconds(self) -> float:
        """Seconds spent waiting for other ranks so far."""
        return sum(reference.wait_seconds for reference in self._references())

    @property
    def coupling_bytes_sent(self) -> int:
        """Payload of this rank so far, in bytes."""
        return sum(reference.bytes_sent for reference in self._references())

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One mini-batch, with .grad as it stands; what `closure` returns.

        Collective over the replicas at the end of a round, for Elastic-SGD always. Raises RuntimeError inside
        `at_reference`, and where a weight has changed its type, device or memory format.
        """
        self._must_be_outside("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._begin()
        self._notice(self._others_before_a_step())
        self._step()
        self._outside.left()
        self.steps += 1
        return loss

    def _must_be_outside(self, function):
        if self._inside:
            raise RuntimeError(
                f"{function} inside at_reference: the model holds the reference there, not the weights that train"
            )

    def _notice(self, changed):
        if changed is not None:
            self._outside.forget()
            live = self._layout.zeros()
            self._layout.pack(live)
            for reference in self._references():
                reference.release()
            self._take_over(changed, live)
            if self._master is not None:
                torch.where(changed, live, self._master, out=self._master)

    def _take(self, changed, share):
        """Note that a share of the elements does not follow the mean that is under way."""
        changed = changed[share]
        self._taken = changed if self._taken is None else self._taken | changed

    def _own_where_taken(self, mean, own):
        """`mean`, and `own` where the weights were taken over since the mean was started."""
        return mean if self._taken is None else torch.where(self._taken, own, mean)

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

    def _couple_alone(self) -> None:
        """Make the references of an optimiser that no other rank takes part in."""
        raise NotImplementedError

    def _others_before_a_step(self) -> torch.Tensor | None:
        """Bool of shape (N,): live weights that somebody else changed since the last step, None where none is seen."""
        raise NotImplementedError

    def _take_over(self, changed: torch.Tensor, live: torch.Tensor) -> None:
        """Give the states, shape (N,), the live weights where somebody else changed them."""
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
            self._layout.settle()
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
            if self.watches_blocks and self._master is None:
                self._outside.arrive(i, weights)
            if lists and group["weight_decay"]:
                lists[1] = torch._foreach_add(lists[1], lists[0], alpha=group["weight_decay"])
            yield i, group, lists, weights
            for run, vector, sizes in zip(runs, weights, layout.run_sizes[i], strict=True):
                if len(sizes) > 1:
                    torch.split_with_sizes_copy(vector, sizes, out=pieces[run])
            if self.watches_blocks and self._master is None:
                self._outside.leave(i, weights)

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """The model holds the newest reference inside, and its live weights again, bit for bit, after.

        The reference is new weights, which no BatchNorm statistics fit until they are computed anew:
        parle_hpc.batchnorm_of_reference. Collective over all ranks, each of them after the same step; that they were
        is known at the next coupling, and Disagreement raised there if not.
        """
        with torch.no_grad():
            self._begin()
            self._notice(self._others_now())
            self._validations, self._validated_at = self._validations + 1, self.steps
            kept = [p.detach().clone() for p in self._layout.params]
            self._layout.unpack(self._newest_reference())
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self._layout.params], kept)

    def _others_now(self):
        """Bool of shape (N,): live weights that are not what the last step left, or None."""
        if self._inside:
            return None
        found = self._others_before_a_step()
        return self._outside.since_the_last_step() if found is None and self._master is None else found

    def state_dict(self) -> dict[str, Any]:
        """This replica's own state: "state" by parameter, in its shape, "param_groups", and "replica".

        The live weights are the model's, and not in it. Where the replica has several ranks it is collective over
        them, whole on each, and loadable by any number of ranks.
        """
        self._begin()
        return portable.pack(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, bit for bit, once the model's weights are loaded too.

        Collective over all ranks. Raises ValueError, and changes nothing, where the state does not fit: another
        network's or algorithm's, or another replica's.
        """
        self._must_be_outside("load_state_dict")
        self._layout.settle()
        found, steps, tracks = portable.unpack(self, state_dict)
        groups = state_dict["param_groups"]
        require(len(groups) == len(self.param_groups), "param_groups", len(groups), f"{len(self.param_groups)} groups")
        self.finish()  # what is still under way belongs to the state that goes
        super().load_state_dict({"state": {}, "param_groups": groups})
        self._view()
        self._begun = True
        self._set_state(found, steps)
        if tracks:
            self._outside.track()
        self._restart()

    @torch.no_grad()
    def _set_state(self, found, steps):
        """The state as given: {name: tensor}, whole, or of the size that this rank has of it."""
        for name, (flat, _) in self.saved().items():
            if name in found:
                values = found[name]
                flat.copy_(values if values.shape == flat.shape else values[self.share])
        self.steps, self._taken = steps, None
        self._outside.forget()

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
            self._set_state({name: torch.from_numpy(values) for name, values in saved.items()}, steps)
            for group, settings in zip(self.param_groups, groups, strict=True):
                group.update(settings)
            self._restore_weights()
            self._restart()

    def gathered(self, flat: torch.Tensor) -> torch.Tensor:
        """The whole of a state of which each rank of the replica has a share, shape (N,). Collective over them."""
        return flat

    def _flat_state(self):
        """The flat buffers that the state consists of, by name."""
        state = {name: getattr(self, name) for name in self.flat_names}
        return state if self._master is None else {**state, "_master": self._master}
