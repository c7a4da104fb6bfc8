"""BatchNorm statistics and validation of the reference.

python -m parle_hpc.evaluate RUN_DIR        # the error of a finished run's reference.pt on the test set
"""

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .data.split import shares
from .data.store import default_path, open_dataset
from .failure import BAD_INPUT, BadInput, Parser, leave, wait_for

EVALUATION_BATCH = 500  # images in a forward pass without gradients


class Score(NamedTuple):
    """Error in percent, and mean cross-entropy in nats."""

    error: float
    loss: float


class Group:
    """The ranks among which an evaluation is divided: sums over an mpi4py communicator, or over this process alone."""

    def __init__(self, comm=None):
        self._comm = comm
        self.rank = comm.Get_rank() if comm is not None else 0
        self.size = comm.Get_size() if comm is not None else 1

    def sum(self, values):
        """Sum of float64 values over the ranks, elementwise."""
        return self._reduce(values, "SUM")

    def max(self, values):
        """Maximum of float64 values over the ranks, elementwise."""
        return self._reduce(values, "MAX")

    def _reduce(self, values, op):
        mine = np.array(values, np.float64)
        if self.size == 1:
            return mine
        from mpi4py import MPI

        result = np.empty_like(mine)
        wait_for(self._comm.Iallreduce(mine, result, op=getattr(MPI, op)).Test, "another rank's part of the validation")
        return result


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


def network(settings, data):
    """The network that the settings name for this data set, with new weights.

    Raises BadInput where it has no such option, cannot be made so, is larger than the memory, or does not take the
    images.
    """
    from .models import build, options

    known = options(settings.model.name)
    given = settings.model.model_dump(exclude={"name"}, exclude_none=True)
    for key in given:
        if key not in known:
            raise BadInput(f"--model.{key}: {settings.model.name} has no such option, it has {', '.join(known)}")
    shape = data.train.images.shape[1:]
    given.update(num_classes=data.classes, in_channels=shape[0])
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with torch.device("meta"):
            size = sum(4 * tensor.numel() for tensor in build(settings.model.name, **given).parameters())
        if size > memory:
            raise ValueError(f"its weights are {size / 1e9:.0f} GB, and the memory here {memory / 1e9:.0f} GB")
        model = build(settings.model.name, **given)
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"--model.name {settings.model.name}: {first_line(error)}") from None
    try:
        with torch.no_grad(), untouched(model):
            model.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        raise BadInput(
            f"--model.name {settings.model.name} does not take {data.name}'s images, {size} ({first_line(error)})"
        ) from None
    return model


def open_run(folder):
    """A finished run's settings, its data set, and its network with the reference's weights and statistics.

    Raises BadInput where the folder does not hold a finished run.
    """
    from .config import load

    folder = Path(folder)
    for name in ("config.toml", "reference.pt"):
        if not os.path.isfile(folder / name):
            raise BadInput(f"{folder} holds no finished run: {name} is missing")
    settings = load(["--recipe", str(folder / "config.toml")])
    path = settings.data.path or default_path(settings.data.name)
    data = open_dataset(path, settings.data.name, settings.data.preprocessing, settings.data.samples)
    model = network(settings, data)
    load_weights(model, folder / "reference.pt")
    return settings, data, model.eval()


def load_weights(model, path):
    """Load a run's state dict into its network. Raises BadInput where the file is damaged or of another network."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        same = forms(state) == forms(model.state_dict())
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {first_line(error)})") from None
    if not same:
        raise BadInput(f"{path} is damaged, or not of this run's network: names, shapes or types of its tensors differ")
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise BadInput(f"{path} is damaged: it holds what is not finite")
    model.load_state_dict(state)


def forms(state):
    """Shape and type of each tensor of a state dict."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def first_line(error):
    return str(error).strip().partition("\n")[0]


def main():
    parser = Parser(prog="python -m parle_hpc.evaluate", description="validate the reference of a finished run")
    parser.add_argument("run", metavar="RUN_DIR", help="output folder of the run")
    try:
        settings, data, model = open_run(parser.parse_args().run)
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    result = Validation(model, data, settings.data.batch_size, torch.device("cpu")).test()
    print(f"validation error {result.error:.2f} %, loss {result.loss:.4f}, on {len(data.test):,} images")


if __name__ == "__main__":
    main()
