"""BatchNorm statistics and validation of the reference."""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..cluster.agreement import Group
from ..data.split import shares
from ..errors import BadInput

EVALUATION_BATCH = 500  # images in a forward pass without gradients


class Score(NamedTuple):
    """Error in percent, and mean cross-entropy in nats."""

    error: float
    loss: float


@contextmanager
def untouched(model):
    """Whatever the body does to modes and BatchNorm statistics, the model has its own again after, bit for bit."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    momenta = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, momentum in momenta:
            module.momentum = momentum
        for buffer, kept in buffers:
            buffer.copy_(kept)


@torch.no_grad()
def recompute_statistics(model, batches, group):
    """BatchNorm statistics of the weights as they are, as torch.optim.swa_utils.update_bn computes them.

    Reset, then the cumulative average over this rank's `batches` of images with dropout off, then the mean over the
    ranks, weighted by their number of batches. Leaves the model in evaluation mode. Collective over the group.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None
    count = 0
    for images in batches:
        model(images)
        count += 1
    model.eval()
    if not layers:
        return
    statistics = [s for layer in layers for s in (layer.running_mean, layer.running_var)]
    mine = torch.cat(statistics).double().cpu().numpy() * count
    *total, batches_of_all = group.sum([*mine, count])
    if not batches_of_all:
        raise BadInput("the training set gives no mini-batch of two images for BatchNorm's statistics")
    mean = torch.tensor(total, dtype=torch.float64) / batches_of_all
    for s, values in zip(statistics, torch.split(mean, [s.numel() for s in statistics]), strict=True):
        s.copy_(values)


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
