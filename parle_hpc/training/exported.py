"""A finished run's reference, as other tools read weights."""

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..cluster.durable import write_whole
from ..errors import BadInput, first_line
from .finished import finished, read_weights

OPTION, ENDING = "--safetensors", ".safetensors"


def facts(folder):
    """What a file of weights says of the run that made them, {name: text}; the recipe where config.toml names it."""
    try:
        settings = (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder / 'config.toml'} cannot be read ({error})") from None
    told = {"format": "pt", "settings": settings}
    with suppress(PackageNotFoundError):  # a clone that is on PYTHONPATH alone
        told["parle_hpc"] = version("parle_hpc")
    first = settings.partition("\n")[0]
    if first.startswith("# recipe "):
        told["recipe"] = first.removeprefix("# recipe ")
    return told


def as_safetensors(folder):
    """The bytes of a safetensors file with a finished run's state dict, bit for bit, and `facts` as its metadata.

    Raises BadInput where there is no such run, its reference is damaged or holds what the format does not, or the
    library is missing.

    The format takes no two tensors that share memory, as tied weights do. The library's own save_model leaves out all
    names of them but one, and load_state_dict then complains of the missing ones. So each name here has a copy of its
    own: load_state_dict(load_file(FILE)) takes the file as it is, and a network whose weights are tied writes the same
    values into them twice.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise BadInput(f"{OPTION} needs what is not installed here ({error}): pip install safetensors") from None
    folder = finished(folder)
    state = read_weights(folder / "reference.pt")
    told = facts(folder)
    try:
        copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        return save(copies, told)
    except (KeyError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{folder / 'reference.pt'} holds what safetensors does not ({type(error).__name__}: {first_line(error)})"
        ) from None


def write_safetensors(folder, path):
    """`as_safetensors` as a file, whole or not at all; its path. Raises BadInput, also where it cannot be written."""
    path = Path(path)
    if path.suffix != ENDING:
        # neither a run's own files nor a folder are written over
        raise BadInput(f"{OPTION} {path}: must be a file whose name ends in {ENDING}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadInput(f"{OPTION} {path}: is there, and is not a file; give another name")
    content = as_safetensors(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise BadInput(f"{OPTION} {path}: cannot be written ({error.strerror}); give a place that can") from None
    return path
