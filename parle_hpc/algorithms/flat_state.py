"""The flat state of an optimiser: how it is laid out, saved, loaded and copied."""

import weakref
from typing import Any

import numpy as np
import torch

from ..cluster.fingerprint import bits
from ..cluster.gradients import optimiser_of
from ..coupling.choice import between_replicas
from . import portable
from .inner import PREFIX
from .layout import Layout
from .outside import Outside


def require(condition, name, value, right):
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {right}")


class FlatState(torch.optim.Optimizer):
    """Flat buffers over all parameters, in the state's type, and a counter of steps, as an optimiser that torch knows.

    Attributes:
        steps: mini-batches done so far, k.
    """

    flat_names: tuple[str, ...] = ()  # attributes that are flat buffers and belong to the state
    share_names: tuple[str, ...] = ()  # those of them of which a rank holds its share alone
    _terms = None  # of an optimiser that no other rank takes part in

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses to become what hvd.DistributedOptimizer makes of an optimiser."""
        super().__init_subclass__(**options)
        if str(getattr(cls.__init__, "__module__", "")).startswith("horovod"):
            raise TypeError(
                f"hvd.DistributedOptimizer cannot wrap {cls.__name__}; call topology.average_gradients before its step"
            )

    def __init__(self, params, defaults, comm=None, replica=None, divided=False):
        require(isinstance(defaults["lr"], torch.Tensor) or defaults["lr"] >= 0, "lr", defaults["lr"], "at least 0")
        require(0 <= defaults["momentum"] < 1, "momentum", defaults["momentum"], "in [0, 1)")
        require(defaults["weight_decay"] >= 0, "weight_decay", defaults["weight_decay"], "at least 0")
        self._layout = None
        super().__init__(params, defaults)
        self._comm = between_replicas(comm, replica)
        self._replica = None if replica is None or replica.Get_size() == 1 else replica
        self._place, self._m = (0, 1) if self._replica is None else (replica.Get_rank(), replica.Get_size())
        self._divided = divided and self._m > 1
        self.steps = 0
        self.coupling_seconds = 0.0
        self._begun = self._inside = False
        self._validations, self._validated_at, self._weights_at_start = 0, 0, 0
        self._taken = None
        self._lay_out()
        self._master = self._layout.zeros() if self._layout.needs_master else None
        for name in self.flat_names:
            setattr(self, name, self._layout.zeros(share=name in self.share_names))
        self._view()

    def _lay_out(self):
        self._layout = Layout(self.param_groups, *((self._place, self._m) if self._divided else (0, 1)))
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
        inner = getattr(self, "_inner", None)
        if self._comm is not None or self._replica is not None or inner is not None:
            coupled = "with another optimiser inside" if inner else "that is coupled to other ranks"
            raise TypeError(
                f"a {type(self).__name__} {coupled} cannot be copied or pickled; take its state_dict, or one made "
                f"without {'inner' if inner else 'comm and replica'}"
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
            self._make_mean()
            self._restart()

    def _of_replica(self):
        """(Which of the replicas this one is, how many there are)."""
        return (0, 1) if self._comm is None else (self._comm.Get_rank(), self._comm.Get_size())

    # What an algorithm says: what it consists of, and how it goes on.

    def _make_mean(self) -> None:
        """Make what brings the mean of the replicas."""
        raise NotImplementedError

    def _restart(self) -> None:
        """What must travel until the next coupling sets off."""
        raise NotImplementedError

    def _restore_weights(self) -> None:
        """Give the network the weights of a state that was restored at the end of a round."""
        raise NotImplementedError

    def _begin_to_tell(self, found: dict[str, Any]) -> None:
        """Tell the others of this state anew where what they know of it was not in `found`."""

    def _references(self) -> list[Any]:
        """The references (coupling) that may be under way."""
        raise NotImplementedError

    def _take_weights(self) -> None:
        """Begin with the weights as the network has them."""
        raise NotImplementedError

    def _look_around(self) -> None:
        """Take over what somebody else has changed in the live weights."""
        raise NotImplementedError

    def _must_be_outside(self, function):
        if self._inside:
            raise RuntimeError(
                f"{function} inside at_reference: the model holds the reference there, not the weights that train"
            )

    def _begin(self):
        """Take the weights as they are at the first use, so that a broadcast may come after the constructor."""
        if not self._begun:
            self._begun = True
            self._layout.settle()
            if self._comm is not None or self._replica is not None:
                self._weights_at_start = int(bits(self._layout.params)) % (1 << 52)
            if self._master is not None:
                self._layout.pack(self._master)
            self._take_weights()

    def finish(self) -> None:
        """Wait for what is under way between the replicas, so that MPI may end. Collective over the replicas."""
        for reference in self._references():
            reference.settle()

    def state_dict(self) -> dict[str, Any]:
        """This replica's own state: "state" by parameter, in its shape, "param_groups", and "replica".

        The live weights are the model's, and not in it. Where the replica has several ranks it is collective over
        them, whole on each, and loadable by any number of ranks.
        """
        self._begin()
        self._look_around()
        return portable.pack(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, bit for bit, once the model's weights are loaded too.

        Collective over all ranks. Raises ValueError, and changes nothing, where the state does not fit: another
        network's or algorithm's, or another replica's.
        """
        self._must_be_outside("load_state_dict")
        self._layout.settle()
        begun, self._begun = self._begun, True  # what is taken up is the state, not the weights
        groups, right = state_dict["param_groups"], f"{len(self.param_groups)} groups"
        try:
            found, steps, tracks = portable.unpack(self, state_dict)
            require(len(groups) == len(self.param_groups), "param_groups", len(groups), right)
        except ValueError:
            self._begun = begun
            raise
        self.finish()  # what is still under way belongs to the state that goes
        super().load_state_dict({"state": {}, "param_groups": groups})
        self._view()
        self._set_state(found, steps)
        if tracks:
            self._outside.track()
        self._begin_to_tell(found)
        self._restart()

    @torch.no_grad()
    def _set_state(self, found, steps):
        """The state as given: {name: tensor}, whole, or of the size that this rank has of it."""
        for name, (flat, _) in self.saved().items():
            if name in found and not name.startswith(PREFIX):
                values = found[name]
                flat.copy_(values if values.shape == flat.shape else values[self.share])
        self.steps, self._taken = steps, None
        self._outside.forget()

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
            found = {name: torch.from_numpy(values) for name, values in saved.items()}
            self._set_state(found, steps)
            for group, settings in zip(self.param_groups, groups, strict=True):
                group.update(settings)
            self._restore_weights()
            self._begin_to_tell(found)
            self._restart()

    def gathered(self, flat: torch.Tensor) -> torch.Tensor:
        """The whole of a state of which each rank of the replica has a share, shape (N,). Collective over them."""
        return flat

    def _flat_state(self):
        """The flat buffers that the state consists of, by name."""
        state = {name: getattr(self, name) for name in self.flat_names}
        return state if self._master is None else {**state, "_master": self._master}
