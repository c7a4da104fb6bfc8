"""The output folder of a run: made, searched for what the run goes on from, and cleared of what it does anew."""

import os
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from ..checkpoints import files, resume
from ..cluster.hold import Held, Hold
from ..cluster.slurm_job import name_of_job
from ..errors import BadInput


def choose(settings):
    """The output folder that the settings name; one named by the clock is made, and nobody else's. Raises BadInput."""
    if settings.out is None and settings.coupling.via == "mailbox":
        return Path(settings.coupling.folder) / "runs" / str(settings.coupling.member)
    name = Path(settings.recipe or settings.task.file).stem
    folder = Path(settings.out or Path("runs") / f"{name}-{run_name(os.environ)}")
    if settings.out is not None or "SLURM_JOB_ID" in os.environ:
        return folder
    try:
        return new(folder)
    except OSError as error:
        raise cannot_be_written(folder, error) from None


def take(folder, resume):
    """The Hold of an output folder, which is made where it is missing.

    Raises BadInput where it cannot be written, a living run holds it, or with resume "never" it holds a run already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold = Hold(folder)
    except Held as other:
        raise BadInput(f"--out {folder}: {other} trains into it; wait for its end, or give another --out") from None
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    if resume == "never" and (folder / "metrics.jsonl").exists():
        hold.release()
        raise BadInput(f"--out {folder}: holds a run already; give another folder, or go on with --resume auto")
    return hold


def cannot_be_written(folder, error):
    return BadInput(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can")


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


def find_checkpoint(folder, given, topology):
    """(Stored to go on from, or None; lines to say). Collective over all ranks.

    given: "auto", "never", or the folder of another run, or a checkpoint, from which to go on where `folder` has none.
    Raises BadInput where that holds none.
    """
    if given == "never":
        return None, []
    topology.together(check_source, given)
    stored, lines = resume.find(folder, topology.world)
    if stored is None and given != "auto":
        stored, more = resume.find(given, topology.world)
        lines += more
        if stored is None:
            raise BadInput(f"--resume {given}: holds no complete checkpoint; give a run's folder, auto or never")
    if stored is None and (folder / "metrics.jsonl").exists():
        lines.append(f"{folder}: no complete checkpoint of the run that was here, which starts anew")
    return stored, lines


def check_source(given):
    """Raises BadInput where --resume names what is no folder."""
    if given != "auto" and not os.path.isdir(given):
        raise BadInput(f"--resume {given}: no such folder; give a run's folder, or auto or never")


def clear(folder, last, metrics):
    """Put away what an interrupted run left after round `last` and this one does anew; None: from the beginning."""
    try:
        files.put_away(folder, last)
        if last is None:
            metrics.go_on(-1, 0.0)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
