"""The reference validated between rounds, and kept at the end."""

from typing import NamedTuple

import numpy as np

from ..checkpoints.resume import as_bytes
from ..checkpoints.saver import reason
from ..cluster.agreement import Group
from ..cluster.durable import write_whole
from .validation import Score, relative_spread


class Outcome(NamedTuple):
    """What a validation found: Scores of the reference, max_a |x^a - x| / |x|, and at the end each replica's score."""

    test: Score
    train: Score
    spread: float
    replicas: list | None

    def values(self):
        """As metrics.jsonl has them; the first is the one that says what is best."""
        found = {f"{part}_{name}": value for part, s in self._parts() for name, value in s.scores.items()}
        found |= {f"{part}_loss": s.loss for part, s in self._parts()}
        if self.replicas is not None:
            found[f"replica_{self.test.first[0]}"] = self.replicas
        return {**found, "spread": self.spread}

    def _parts(self):
        return ("val", self.test), ("train", self.train)


class Validator:
    """Validates the reference, and at the end keeps it.

    Args:
        optimizer: which knows the reference.
        validation: Validation over all ranks.
        alone: Validation over the ranks of this replica.
        topology: Topology.
        folder: output folder.
        batches: mini-batches of training data for statistics and training score, but at the end.
        save_replicas: keep each replica's own weights too.
    """

    def __init__(self, optimizer, validation, alone, topology, folder, *, batches, save_replicas):
        self._optimizer, self._validation, self._alone, self._topology = optimizer, validation, alone, topology
        self._folder, self._batches, self._save_replicas = folder, batches, save_replicas
        self._params = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, last=False):
        """The Outcome now, at the end of a round; last: keep the reference. Collective over all ranks."""
        live = [p.detach().clone() for p in self._params]
        with self._optimizer.at_reference():
            spread = relative_spread(live, self._params, self._validation.group)
            test, train, state = self._validation.validate(None if last else self._batches)
        replicas = self._replica_scores() if last else None
        if last and self._topology.world.Get_rank() == 0:
            save(state, self._folder)
        return Outcome(test, train, spread, replicas)

    def whole_batches(self):
        """One (samples, batch) of each size in which whole batches are scored."""
        return self._validation.whole_batches()

    def _replica_scores(self):
        """First score of each replica's own x^a, which the live weights are at the end of a round."""
        test, _, state = self._alone.validate(self._batches, train=False)
        t = self._topology
        if self._save_replicas and t.place == 0:
            (self._folder / "replicas").mkdir(exist_ok=True)
            save(state, self._folder / "replicas", f"{t.replica_index}.pt")
        scores = np.zeros(t.n)
        scores[t.replica_index] = test.first[1]
        return Group(t.cross).sum(scores).tolist()


def save(state, folder, name="reference.pt"):
    """A state dict on disk, complete or not there at all. Raises OSError with a line for people."""
    path = folder / name
    plain = {name: value.contiguous() for name, value in state.items()}
    try:
        write_whole(path, as_bytes(plain))
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from None
