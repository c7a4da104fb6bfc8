"""What runs tell, as the event files that TensorBoard reads: DIR/RUN/events.out.tfevents.TIME.parle_hpc.

A scalar is a number of a `validate` or a `round` event, by its name, e.g. validate/val_error or round/lr, and of a list
each number, e.g. validate/replica_error/0; of numbers where the event is, the step and the time are the axes, and
`round` and `passes` are left out. No file says when a run began: it is taken to be when metrics.jsonl was last written,
less the seconds of its last line. So of a run that was interrupted, what was before lies later by the pause.
"""

import io
import os
import time
from pathlib import Path

import numpy as np

from ..cluster.durable import write_whole
from ..errors import BadInput
from ..training.metrics import PLACE
from .pages import open_folder
from .records import read_events

OPTION = "--tensorboard"
SHOWN = ("validate", "round")
LARGEST = float(np.finfo(np.float32).max)  # that an event file can hold
NAME, OURS = "events.out.tfevents", "parle_hpc"


def scalars(event):
    """(name, number) of all that an event, a dict, tells in numbers."""
    for key, value in event.items():
        if key in PLACE:
            continue
        name = f"{event['event']}/{key}"
        several = [(f"{name}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(name, value)]
        for name, value in several:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST:
                yield name, float(value)


def read(folder):
    """A run's events, which may be going on, and when it began, in seconds since 1970. Raises BadInput."""
    path = Path(folder) / "metrics.jsonl"
    if not os.path.isfile(path):
        raise BadInput(f"{folder} holds no run: metrics.jsonl is missing")
    written = path.stat().st_mtime
    events = read_events(path, kinds={}, torn=True)
    return events, written - (events[-1]["seconds"] if events else 0)


def records(events, began):
    """The bytes of an event file. Raises BadInput where tensorboard is not installed."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise BadInput(f"{OPTION} needs what is not installed here ({error}): pip install tensorboard") from None
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
    for event in events:
        if event["event"] in SHOWN:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars(event)])
            told = Event(wall_time=began + event["seconds"], step=event["step"], summary=summary)
            writer.write(told.SerializeToString())
    return content.getvalue()


def names(folders):
    """{name of a run: its folder}. Raises BadInput where two of them have one name."""
    found = {}
    for folder in map(Path, folders):
        name = os.path.basename(os.path.realpath(folder))
        if os.path.realpath(found.setdefault(name, folder)) != os.path.realpath(folder):
            raise BadInput(
                f"{OPTION}: {found[name]} and {folder} have one name, {name}; give them one by one, a folder each"
            )
    return found


def write(folders, out):
    """The event files of the runs in `folders`, each in out/NAME, where they replace those of an earlier call; `out`.

    Raises BadInput, before anything is written, for what is no run and where tensorboard is missing.
    """
    contents = {name: records(*read(folder)) for name, folder in names(folders).items()}
    for name, content in contents.items():
        folder = open_folder(Path(out) / name, OPTION)
        earlier = list(folder.glob(f"{NAME}.*.{OURS}"))
        # a new name: a TensorBoard that is open follows the old file, which it does not read again from its start
        path = folder / f"{NAME}.{time.time_ns()}.{OURS}"
        try:
            write_whole(path, content)
            for file in earlier:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise BadInput(f"{OPTION} {out}: cannot be written ({error.strerror}); give a folder that can") from None
    return out
