"""An optimiser whose state is flat: what Parle, Entropy-SGD and Elastic-SGD have in common."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..cluster.fingerprint import digest, in_memory_order
from ..cluster.gradients import START
from ..cluster.waiting import counted
from ..coupling.terms import Terms
from .compiler import load_late
from .counts import Counts
from .flat_state import FlatState
from .kept import kept
from .layout import cut, joined

SGD_ROUND = 25  # SGD and Elastic-SGD have no rounds, but are counted, reported and saved in rounds of this many steps


class FlatOptimizer(Counts, FlatState):
    """What Parle, Entropy-SGD and Elastic-SGD share: flat state, a step counter, and the way to the reference.

    The live weights may be changed from outside at any time: loaded, broadcast, masked, clamped. A changed element is
    taken over: x^a and z (of Elastic-SGD x) take its value, at rest, and until the next coupling so does the
    reference there. A change in mid-round is seen the first time in blocks of up to 262,144 weights (on a GPU of a
    parameter group, and at the coupling), which are taken over whole; from then on each element by itself, for which a
    copy of the weights is kept. A parameter that needs no gradient stands still, as a changed one does. The network's
    type, device and memory format are those of the first step from then on.

    Attributes:
        steps, round_length: as Counts'.
        gamma, rho: of this round or step, None where the algorithm has none.
        coupling_seconds: time that the coupling has taken so far: waiting for the mean and moving x^a, or x.
    """

    averaged = False  # whether average_gradients was called in this round
    watches_blocks = False  # whether changes from outside are looked for in sums over the blocks

    @property
    def _watching(self):
        # a master is compared itself
        return self.watches_blocks and self._master is None

    def _set_terms(self, ways=(), **facts):
        """What must be the same on the ranks that are coupled: the algorithm's `ways`, and `facts` that are numbers."""
        common = {"the algorithms, or their ways,": digest((type(self).__name__, *ways))}
        shown = ("the number of parameters", "the number of weights", *facts)
        # these are asked for by a reference that the optimiser itself holds
        me = weakref.ref(self)

        def all_facts():
            return {**common, **me()._layout.facts, **facts, START: me()._weights_at_start}

        def progress():
            return me()._coupled_at, me()._validations, me()._validated_at

        def tells():
            return me()._tells()

        self._terms = Terms(all_facts, progress, shown, tells)

    @property
    def coupling_wait_seconds(self) -> float:
        """Seconds spent waiting for other ranks so far."""
        return sum(reference.wait_seconds for reference in self._references())

    @property
    def coupling_bytes_sent(self) -> int:
        """Payload of this rank so far, in bytes."""
        return sum(reference.bytes_sent for reference in self._references())

    @property
    def coupling_news(self) -> dict[str, float]:
        """What the last coupling says of the other replicas, where they may differ: coupling.posting."""
        return {name: value for reference in self._references() for name, value in reference.news.items()}

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One mini-batch, with .grad as it stands; what `closure` returns.

        Collective over the replicas at the end of a round, for Elastic-SGD always. Raises RuntimeError inside
        `at_reference`, and where a weight has changed its type, device or memory format.
        """
        self._must_be_outside("step")
        loss, nominal = None, self.nominal_steps
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._begin()
        self._notice(self._others_before_a_step())
        self._step()
        self._outside.left()
        self.steps += 1
        self._count("steps of the optimiser", self.nominal_steps - nominal)
        return loss

    def _count(self, kind, times=1):
        if self._comm is not None or self._replica is not None:
            counted(kind, times)

    def _notice(self, changed):
        if changed is not None:
            self._outside.see()
            live = self._layout.packed()
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

    @property
    def _coupled_at(self) -> int:
        """The step of a mean that sets off, the same on all ranks."""
        return self.steps

    def _tells(self) -> tuple[float, ...]:
        """What else this rank tells the others behind every mean."""
        return ()

    def _step(self) -> None:
        """One mini-batch, under no_grad, and at the end of a round the coupling."""
        raise NotImplementedError

    def _newest_reference(self) -> torch.Tensor:
        """The reference as it is now, shape (N,). Collective over the replicas."""
        raise NotImplementedError

    def _others_before_a_step(self) -> torch.Tensor | None:
        """Bool of shape (N,): live weights that somebody else changed since the last step, None where none is seen."""
        raise NotImplementedError

    def _take_over(self, changed: torch.Tensor, live: torch.Tensor) -> None:
        """Give the states, shape (N,), the live weights where somebody else changed them."""
        raise NotImplementedError

    def _blocks(self, *names):
        """(index, group, lists, weights) of each block, in which the equations are to update their first list.

        lists are (weights, gradients, states...) with weight decay in the gradients, without the parameters that have
        no gradient, and None where none has one; weights are the block's, one vector a run. names: of the flat buffers.
        """
        layout, states = self._layout, [self._runs[name] for name in names]
        gradients = layout.pieces(layout.gradients())
        watched = self._outside if self._watching else None
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
            if watched is not None and watched.arrive(i, weights):
                self._notice(watched.since_the_last_step())
            if lists and group["weight_decay"]:
                lists[1] = torch._foreach_add(lists[1], lists[0], alpha=group["weight_decay"])
            yield i, group, lists, weights
            for run, vector, sizes in zip(runs, weights, layout.run_sizes[i], strict=True):
                if len(sizes) > 1:
                    torch.split_with_sizes_copy(vector, sizes, out=pieces[run])
            if watched is not None:
                watched.leave(i, weights)

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """The model holds the newest reference inside, and its live weights again, bit for bit, after.

        The reference is new weights, which no BatchNorm statistics fit until they are computed anew:
        parle_hpc.batchnorm_of_reference. Collective over all ranks, each of them after the same step; that they were
        is known at the next coupling, and Disagreement raised there if not.
        """
        with torch.no_grad():
            self._begin()
            self._look_around()
            self._validations, self._validated_at = self._validations + 1, self.nominal_steps
            self._count("calls of at_reference")
        before = self._inside
        with kept(self._layout.params):
            with torch.no_grad():
                self._layout.unpack(self._newest_reference())
            self._inside = True
            try:
                yield
            finally:
                self._inside = before

    @torch.no_grad()
    def _look_around(self):
        """Take over whatever is not what the last step left."""
        if not self._inside:
            found = self._others_before_a_step()
            if found is None and self._watching:
                found = self._outside.since_the_last_step()
            self._notice(found)


load_late(FlatOptimizer)
