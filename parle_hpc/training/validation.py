"""Validation of the reference."""

from typing import NamedTuple

import numpy as np
import torch

from ..cluster.agreement import Group
from ..data.split import shares
from .batchnorm import recompute_statistics, untouched

EVALUATION_BATCH = 500  # images in a forward pass without gradients


class Score(NamedTuple):
    """Error in percent, and mean cross-entropy in nats."""

    error: float
    loss: float


@torch.no_grad()
def score(model, batches, group):
    """Score over the (images, labels) of all ranks of the group. Collective over it."""
    wrong, loss, count = 0.0, 0.0, 0
    for images, labels in batches:
        outputs = model(images)
        wrong += (outputs.argmax(1) != labels).sum().item()
        loss += torch.nn.functional.cross_entropy(outputs.float(), labels, reduction="sum").item()
        count += len(labels)
    wrong, loss, count = group.sum([wrong, loss, count])
    return Score(100 * wrong / count, loss / count)


class Validation:
    """Validates whatever weights the model holds, on all ranks, and leaves it as it was, bit for bit.

    Args:
        model: the network that trains.
        data: DataSet.
        batch_size: images in a batch that gives BatchNorm statistics: the mini-batch of training.
        device: of the model.
        comm: mpi4py communicator among whose ranks the work is divided; None for this process alone.
        seen: indices of the training images to use; None for all of them.
        beat: called with each batch.
    """

    def __init__(self, model, data, batch_size, device, comm=None, seen=None, beat=lambda: None):
        self._beat = beat
        self.model, self.data, self.batch_size, self.device = model, data, batch_size, device
        self.group = Group(comm)
        self.seen = np.arange(len(data.train)) if seen is None else seen

    def test_batches(self):
        """This rank's batches of test images and labels."""
        for indices in shares(len(self.data.test), EVALUATION_BATCH, self.group.rank, self.group.size):
            self._beat()
            yield self.data.test.batch(indices, self.device)

    def _train(self, limit):
        for indices in shares(len(self.seen), self.batch_size, self.group.rank, self.group.size, limit):
            self._beat()
            yield self.data.train.batch(self.seen[indices], self.device)

    def test(self):
        """Score on the test set of the model as it is, statistics included, in evaluation mode."""
        with untouched(self.model):
            self.model.eval()
            return score(self.model, self.test_batches(), self.group)

    def refresh(self, limit=None):
        """Give the model BatchNorm statistics of the weights that it holds, and leave it in evaluation mode."""
        # one image alone has no variance
        batches = (images for images, _ in self._train(limit) if len(images) > 1)
        recompute_statistics(self.model, batches, self.group)

    def validate(self, limit=None):
        """(test Score, training Score, state dict with the new statistics).

        limit: mini-batches of training data for statistics and training score; None for the whole set.
        """
        with untouched(self.model):
            self.refresh(limit)
            test = score(self.model, self.test_batches(), self.group)
            train = score(self.model, self._train(limit), self.group)
            state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        return test, train, state


@torch.no_grad()
def relative_spread(live, reference, group):
    """max_a |x^a - x| / |x| over the ranks of the group; `live` and `reference` are lists of tensors."""
    far = sum((a - x).double().square().sum().item() for a, x in zip(live, reference, strict=True))
    size = sum(x.double().square().sum().item() for x in reference)
    return float(group.max([(far / size) ** 0.5])[0])
