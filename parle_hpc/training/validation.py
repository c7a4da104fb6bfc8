"""Validation of the reference."""

from typing import NamedTuple

import numpy as np
import torch

from ..cluster.agreement import Group, from_first
from ..data.loader import sweep
from ..data.split import shares
from .batchnorm import layers_with_statistics, recompute_statistics, untouched


class Score(NamedTuple):
    """The mean loss over the samples, and the means of the task's scores by name."""

    loss: float
    scores: dict

    @property
    def first(self):
        """(Name, value) of the task's first score."""
        return next(iter(self.scores.items()))


class Validation:
    """Validates whatever weights the model holds, on all ranks, and leaves it as it was, bit for bit.

    Args:
        computing: Computing, which has the network that trains.
        sources: Sources of the training and the validation samples.
        batch_size: samples in a batch that gives BatchNorm statistics: the mini-batch of training.
        at_once: samples in a forward pass without gradients.
        ahead: Ahead, which fetches; None: they are fetched here.
        stream: Stream, on which a batch is prepared while the one before it is scored; None: one after the other.
        comm: mpi4py communicator among whose ranks the work is divided; None for this process alone.
        seen: indices of the training samples to use; None for all of them.
        beat: called with each batch.
    """

    def __init__(
        self, computing, sources, batch_size, *, at_once, ahead=None, stream=None, comm=None, seen=None, beat=None
    ):
        self._beat, self._ahead, self._stream = beat or (lambda: None), ahead, stream
        self._computing = computing
        self.model, self.task, self.batch_size = computing.model, computing.task, batch_size
        self.group, self._at_once = Group(comm), at_once
        self._train, self._test = sources.train, sources.validation
        self.seen = np.arange(len(self._train)) if seen is None else seen
        self._comm, self._names = comm, None

    def _batches(self, source, indices):
        for found in sweep(source, indices, self._computing.device, self._ahead, self._stream):
            self._beat()
            yield found

    def test_batches(self):
        """This rank's (count, batch) of the validation samples."""
        mine = shares(len(self._test), self._at_once, self.group.rank, self.group.size)
        return self._batches(self._test, mine)

    def train_batches(self, limit, at_once):
        """This rank's (count, batch) of training samples, `at_once` at a time; limit: mini-batches of them, or None."""
        mine = shares(len(self.seen), self.batch_size, self.group.rank, self.group.size, limit)
        parts = (part for indices in mine for part in np.split(indices, range(at_once, len(indices), at_once)))
        return self._batches(self._train, (self.seen[part] for part in parts))

    def whole_batches(self):
        """One (samples, batch) of each size in which whole batches are scored, fetched here."""
        sizes = {min(self._at_once, len(self._test)), min(self._at_once, self.batch_size)}
        found = (np.arange(size) for size in sorted(sizes))
        return list(sweep(self._test, found, self._computing.device))

    def test(self):
        """Score on the validation samples of the model as it is, statistics included, in evaluation mode."""
        with untouched(self.model):
            self.model.eval()
            return self._score(self.test_batches())

    def refresh(self, limit=None):
        """Give the model BatchNorm statistics of the weights that it holds, and leave it in evaluation mode."""
        batches = ()
        if layers_with_statistics(self.model):
            # one sample alone has no variance
            whole = self.train_batches(limit, self.batch_size)
            batches = (batch for count, batch in whole if count > 1)
        recompute_statistics(self.model, self._computing.forward, batches, self.group)

    def validate(self, limit=None, train=True):
        """(validation Score, training Score, state dict with the new statistics).

        limit: mini-batches of training data for statistics and training score; None for the whole set. train: whether
        there is a training Score; else it is None.
        """
        with untouched(self.model):
            self.refresh(limit)
            test = self._score(self.test_batches())
            at_once = min(self._at_once, self.batch_size)
            trained = self._score(self.train_batches(limit, at_once)) if train else None
            state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        return test, trained, state

    @torch.no_grad()
    def _score(self, batches):
        """Score over the (count, batch) of all ranks, collective over them."""
        names, sums, count = None, 0.0, 0
        for samples, batch in batches:
            loss, values = self._computing.values(samples, batch)
            found = [loss.double() * samples, *(by_sample.double().sum() for by_sample in values.values())]
            names, sums = [*values], sums + torch.stack(found).cpu().numpy()
            count += samples
        if self._names is None:
            # a rank may have no samples, and rank 0 always has some
            self._names = names if self._comm is None else from_first(self._comm, names)
        mine = sums if count else np.zeros(1 + len(self._names))
        loss, *scores, count = self.group.sum([*mine, count])
        return Score(loss / count, {name: value / count for name, value in zip(self._names, scores, strict=True)})


@torch.no_grad()
def relative_spread(live, reference, group):
    """max_a |x^a - x| / |x| over the ranks of the group; `live` and `reference` are lists of tensors."""
    far = sum((a - x).double().square().sum().item() for a, x in zip(live, reference, strict=True))
    size = sum(x.double().square().sum().item() for x in reference)
    return float(group.max([(far / size) ** 0.5])[0])
