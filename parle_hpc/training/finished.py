"""A finished run, opened again."""

import os
import warnings
from pathlib import Path

import torch

from ..data.advice import default_path
from ..data.ahead import Ahead
from ..errors import BadInput, say
from ..settings import load
from ..tasks.chosen import Sources, of_user
from ..tasks.network import first_line
from .opening import checksum_of_file
from .validation import Validation

DATA_PATH = "the data set's file, where it is not what the run had"  # --help of a command that opens runs


def open_run(folder, data_path=None):
    """A finished run's settings, its Sources, and its network with the reference's weights and statistics.

    data_path: of the data set's file; None: the run's own. Raises BadInput where the folder does not hold a finished
    run, or the file another data set than the run's.
    """
    folder = Path(folder)
    for name in ("config.toml", "reference.pt"):
        if not os.path.isfile(folder / name):
            raise BadInput(f"{folder} holds no finished run: {name} is missing")
    settings = load(["--recipe", str(folder / "config.toml")])
    d, t = settings.data, settings.task
    if t.file:
        if data_path:
            raise BadInput(f"--data.path {data_path}: {t.file} opens its own data; leave it out")
        if checksum_of_file(t.file) != t.checksum:
            say(f"{t.file} has changed since {folder} was trained with it")
    else:
        d.path = str(data_path or d.path or default_path(d.name))
        if not os.path.isfile(d.path):
            raise BadInput(
                f"{d.path}, the data set {d.name} of {folder}, is not there; give its file by --data.path FILE"
            )
    sources = Sources(settings)
    model = of_user(settings, "model()", sources.task.model)
    load_weights(model, folder / "reference.pt")
    return settings, sources, model.eval()


def validation_of(settings, sources, model, device):
    """The Validation of a finished run's network, in this process alone."""
    d = settings.data
    at_once = sources.task.evaluation_batch or d.batch_size
    ahead = Ahead(sources, d.workers, device.type == "cuda") if d.workers else None
    return Validation(model, sources, d.batch_size, device, at_once=at_once, ahead=ahead)


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
