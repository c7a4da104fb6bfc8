"""The reference validated between rounds, and kept at the end."""

import io
from typing import NamedTuple

import numpy as np
import torch

from ..checkpoints.files import write_whole
from ..checkpoints.saver import reason
from ..cluster.agreement import Group
from .validation import Score, relative_spread


class Outcome(NamedTuple):
    """What a validation found: Scores of the reference, and at the end the error in percent of each replica."""

    test: Score
    train: Score
    replica_error: list | None


class Validator:
    """Validates the reference, says so, and at the end keeps it.

    Args:
        optimizer: which knows the reference.
        validation: Validation over all ranks.
        alone: Validation over the ranks of this replica.
        topology: Topology.
        folder: output folder.
        metrics: Metrics, which are told.
        batches: mini-batches of training data for statistics and training error, but at the end.
        save_replicas: keep each replica's own weights too.
    """

    def __init__(self, optimizer, validation, alone, topology, folder, metrics, *, batches, save_replicas):
        self._optimizer, self._validation, self._alone, self._topology = optimizer, validation, alone, topology
        self._folder, self._metrics = folder, metrics
        self._batches, self._save_replicas = batches, save_replicas
        self._params = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, round, rounds, last):
        """The Outcome after round `round` of `rounds`; last: keep the reference. Collective over all ranks."""
        live = [p.detach().clone() for p in self._params]
        with self._optimizer.at_reference():
            spread = relative_spread(live, self._params, self._validation.group)
            test, train, state = self._validation.validate(None if last else self._batches)
        values = {"val_error": test.error, "val_loss": test.loss, "train_error": train.error, "train_loss": train.loss}
        if last:
            values["replica_error"] = self._replica_errors()
        step = (round + 1) * self._optimizer.round_length
        self._metrics.event("validate", round, step, **values, spread=spread)
        self._metrics.say(
            f"round {round + 1}/{rounds}, {self._metrics.seconds:.0f} s: validation error {test.error:.2f} %, "
            f"training error {train.error:.2f} %, spread {spread:.3f}"
        )
        if last and self._topology.world.Get_rank() == 0:
            save(state, self._folder / "reference.pt")
        return Outcome(test, train, values.get("replica_error"))

    def _replica_errors(self):
        """Validation error of each replica's own x^a, which the live weights are at the end of a round."""
        test, _, state = self._alone.validate(self._batches)
        t = self._topology
        if self._save_replicas and t.place == 0:
            (self._folder / "replicas").mkdir(exist_ok=True)
            save(state, self._folder / "replicas" / f"{t.replica_index}.pt")
        errors = np.zeros(t.n)
        errors[t.replica_index] = test.error
        return Group(t.cross).sum(errors).tolist()


def save(state, path):
    """A state dict on disk, complete or not there at all. Raises OSError with a line for people."""
    memory = io.BytesIO()
    torch.save(state, memory)
    try:
        write_whole(path, memory.getbuffer())
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from None
