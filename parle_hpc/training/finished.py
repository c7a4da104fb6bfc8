"""A finished run, opened again."""

import os
import warnings
import zipfile
from pathlib import Path

import torch

from ..data.advice import default_path
from ..data.ahead import ahead_of
from ..errors import BadInput, first_line, say
from ..settings import load
from ..tasks.chosen import Sources, of_user
from .computing import Computing
from .opening import checksum_of_file
from .validation import Validation

DATA_PATH = "the data set's file, where it is not what the run had"  # --help of a command that opens runs


def finished(folder):
    """The folder, as a Path. Raises BadInput where it does not hold a finished run."""
    folder = Path(folder)
    for name in ("config.toml", "reference.pt"):
        if not os.path.isfile(folder / name):
            raise BadInput(f"{folder} holds no finished run: {name} is missing")
    return folder


def open_run(folder, data_path=None):
    """A finished run's settings, its Sources, and its network with the reference's weights and statistics.

    data_path: of the data set's file; None: the run's own. Raises BadInput where the folder does not hold a finished
    run, or the file another data set than the run's.
    """
    folder = finished(folder)
    settings, sources, model = opened(folder, data_path)
    load_weights(model, folder / "reference.pt")
    return settings, sources, model.eval()


def opened(folder, data_path=None):
    """The settings that a folder's config.toml has, their Sources, and a new network. Raises BadInput; see open_run."""
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
    return settings, sources, of_user(settings, "model()", sources.task.model)


def validation_of(settings, sources, model, device):
    """The Validation of a finished run's network, in this process alone."""
    d = settings.data
    at_once = sources.task.evaluation_batch or d.batch_size
    ahead = ahead_of(sources, d.workers, device)
    computing = Computing(sources.task, model, device, settings.run.precision)
    return Validation(computing, sources, d.batch_size, at_once=at_once, ahead=ahead)


def read_weights(path):
    """A run's state dict, {name: tensor}, on the CPU. Raises BadInput where the file is damaged."""
    try:
        # torch does not look at the checksums that it writes
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        whole = all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items())
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {first_line(error)})") from None
    if damaged:
        raise BadInput(f"{path} is damaged: {damaged} in it is not what was written")
    if not whole:
        raise BadInput(f"{path} is damaged: it holds other things than tensors by their names")
    return state


def load_weights(model, path):
    """Load a run's state dict into its network. Raises BadInput where the file is damaged or of another network."""
    state = read_weights(path)
    if forms(state) != forms(model.state_dict()):
        raise BadInput(f"{path} is damaged, or not of this run's network: names, shapes or types of its tensors differ")
    # a buffer may be a mask of -inf
    if not all(state[name].isfinite().all() for name, _ in model.named_parameters(remove_duplicate=False)):
        raise BadInput(f"{path} is damaged: it holds what is not finite")
    model.load_state_dict(state)


def forms(state):
    """Shape and type of each tensor of a state dict."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
