"""The output folder of a run: made, searched for what the run goes on from, and cleared of what it does anew."""

import os
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from ..checkpoints import files, resume
from ..cluster.agreement import by_first
from ..cluster.hold import Held, Hold
from ..cluster.slurm_job import name_of_job
from ..errors import BadInput
from ..settings import write as write_settings


@contextmanager
def output(settings, topology):
    """The output folder of a run, for all ranks, held by this run until the body ends. Collective over all ranks.

    Raises BadInput, on all ranks, where it cannot be written, or a living run holds it.
    """
    held = []

    def take():
        folder, hold = open_output(settings)
        held.append(hold)
        return folder

    try:
        yield by_first(topology, take)
    finally:
        for hold in held:
            hold.release()


def open_output(settings):
    """(The output folder, which is made where it is missing, its Hold). Raises BadInput where that is not possible."""
    folder = Path(settings.out or Path("runs") / f"{Path(settings.recipe).stem}-{run_name(os.environ)}")
    try:
        if settings.out is None and "SLURM_JOB_ID" not in os.environ:
            folder = new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        hold = Hold(folder)
    except Held as other:
        raise BadInput(f"--out {folder}: {other} trains into it; wait for its end, or give another --out") from None
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    if settings.resume == "never" and (folder / "metrics.jsonl").exists():
        hold.release()
        raise BadInput(f"--out {folder}: holds a run already; give another folder, or go on with --resume auto")
    return folder, hold


def new(folder):
    """A new folder of that name, which with -2, -3 and so on behind it is nobody else's. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        mine = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with suppress(FileExistsError):
            mine.mkdir()
            return mine


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
    elif (folder / "metrics.jsonl").exists():
        lines.append(f"{folder}: no complete checkpoint of the run that was here, which starts anew")
    return stored, lines


def check_source(given):
    """Raises BadInput where --resume names what is no folder."""
    if given != "auto" and not os.path.isdir(given):
        raise BadInput(f"--resume {given}: no such folder; give a run's folder, or auto or never")


def check_data(stored, images, data):
    """Raises BadInput where a checkpoint was made with other data; images: how many there are, (training, test)."""
    now, before = " + ".join(map(str, images)), " + ".join(map(str, stored.manifest["images"]))
    if now == before:
        # an older version's has no checksum
        now, before = data.checksum, stored.manifest.get("data", data.checksum)
    else:
        now, before = f"{now} images", f"{before} images"
    if now != before:
        raise BadInput(
            f"--data.path {data.path}: holds {now}; the checkpoints in {stored.folder} were made with {before}; "
            "give the same data, or another --out"
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
