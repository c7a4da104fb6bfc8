"""The output folder of a run: made, searched for what the run goes on from, and cleared of what it does anew."""

import os
from datetime import datetime
from pathlib import Path

from ..checkpoints import files, resume
from ..cluster.slurm_job import name_of_job
from ..errors import BadInput
from ..settings import write as write_settings


def open_output(settings):
    """Make the output folder; the folder. Raises BadInput where that is not possible."""
    folder = Path(settings.out or Path("runs") / f"{Path(settings.recipe).stem}-{run_name(os.environ)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings.resume == "never" and (folder / "metrics.jsonl").exists():
            raise BadInput(f"--out {folder}: holds a run already; give another folder, or go on with --resume auto")
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    return folder


def run_name(environment):
    """The job's (array) id under Slurm, and the step's after the first, so that a requeued job finds itself; else date
    and time."""
    return name_of_job(environment) or f"{datetime.now():%Y%m%d-%H%M%S}"


def find_checkpoint(settings, folder, topology):
    """(Stored to go on from, or None; lines to say). Collective. Raises BadInput where it is of another run."""
    if settings.resume == "never":
        return None, []
    topology.together(check_source, settings.resume)
    stored, lines = resume.find(folder, topology.world)
    if stored is None and settings.resume != "auto":
        stored, more = resume.find(settings.resume, topology.world)
        lines += more
        if stored is None:
            raise BadInput(
                f"--resume {settings.resume}: holds no complete checkpoint; give a run's folder, auto or never"
            )
    if stored is not None:
        resume.check_settings(stored.manifest, settings, stored.folder)
    return stored, lines


def check_source(given):
    """Raises BadInput where --resume names what is no folder."""
    if given != "auto" and not os.path.isdir(given):
        raise BadInput(f"--resume {given}: no such folder; give a run's folder, or auto or never")


def check_images(stored, images, path):
    """Raises BadInput where a checkpoint was made with other numbers of images (training, test)."""
    if stored.manifest["images"] != images:
        before = " + ".join(map(str, stored.manifest["images"]))
        raise BadInput(
            f"--data.path {path}: holds {images[0]} + {images[1]} images; the checkpoints in "
            f"{stored.folder} were made with {before}; give the same data, or another --out"
        )


def prepare(folder, settings, last, metrics):
    """Write config.toml, and put away what an interrupted run left after round `last` and this one does anew.

    last: None where the run starts from the beginning.
    """
    try:
        write_settings(settings, folder / "config.toml")
        files.put_away(folder, last)
        if last is None:
            metrics.go_on(-1, 0.0)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); give one that can") from None
