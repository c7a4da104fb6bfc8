"""What a run tells: one JSON object a line for programs; progress, a log and a summary for people.

metrics.jsonl holds an `event` (start, round, validate, checkpoint, resume, end) a line, with `seconds` since the start,
`round`, `step` and `passes` over the data; validate adds errors in percent, round adds gamma, rho, lr,
samples_per_second and what the coupling took, start the number of ranks.
"""

import json
import math
import os
import sys
import time
from datetime import datetime

from tqdm import tqdm

from ..cluster.durable import write_whole
from ..errors import say

PLACE = ("event", "seconds", "round", "step", "passes")  # where an event is in its run: what every line has


class Metrics:
    """The writer, on world rank 0; elsewhere `folder` is None and every call is free.

    Args:
        folder: output folder, which exists.

    Attributes:
        batches_per_pass: B.
    """

    def __init__(self, folder):
        self._folder, self._started, self.batches_per_pass = folder, time.perf_counter(), 1
        self._unwritten = {}
        terminal = folder is not None and sys.stderr.isatty()
        self._bar = tqdm(unit="round", disable=not terminal, dynamic_ncols=True)

    @property
    def seconds(self):
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def go_on(self, round, seconds):
        """Continue after round `round`, `seconds` since the start: what was written of later rounds is forgotten.

        They are done anew. With round -1 nothing is kept.
        """
        path = self._folder and self._folder / "metrics.jsonl"
        if path and path.exists():
            kept = [line for line in path.read_text().splitlines(keepends=True) if belongs(line, round)]
            write_whole(path, "".join(kept).encode())
            seconds = max([seconds, *(json.loads(line)["seconds"] for line in kept[-1:])])
        self._started = time.perf_counter() - seconds

    def _append(self, name, line):
        """Write a line; where the disk is full or gone, keep it for the next time."""
        if not self._folder:
            return
        kept = self._unwritten.setdefault(name, [])
        kept.append(line + "\n")
        try:
            with open(self._folder / name, "a") as file:
                file.write("".join(kept))
        except OSError as error:
            if len(kept) == 1:
                say(f"rank 0: {self._folder / name}: {error.strerror}; the run goes on and tries again every round")
        else:
            kept.clear()

    def event(self, event, round, step, **values):
        """Write one line of metrics.jsonl."""
        place = (event, self.seconds, round, step, step / self.batches_per_pass)
        line = {**dict(zip(PLACE, place, strict=True)), **values}
        self._append("metrics.jsonl", json.dumps({key: for_json(value) for key, value in line.items()}))

    def expect(self, rounds, done):
        """The progress bar has so many rounds, of which some are done."""
        self._bar.total, self._bar.n = rounds, done
        self._bar.refresh()

    def progress(self, loss):
        """One round more on the progress bar, with this rank's mean training loss, or None."""
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def say(self, message):
        """One line for people, on the screen and, with the time, in train.log."""
        self._append("train.log", f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}")
        if self._folder:
            try:
                with self._bar.external_write_mode():
                    sys.stdout.write(message + "\n")
                    sys.stdout.flush()
            except OSError:
                # nobody listens any more, as after `| head`: the log has it all, and the run goes on
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def close(self):
        """Leave the terminal to others."""
        self._bar.close()
        for name, lines in self._unwritten.items():
            if lines:
                say(f"rank 0: {self._folder / name}: {len(lines)} lines were not written: the disk is full or gone")


def belongs(line, round):
    """Whether a line of metrics.jsonl, which may be torn, tells of a run that goes on after `round`."""
    try:
        event = json.loads(line)
        return event["round"] <= round and event["event"] != "end"
    except (ValueError, KeyError, TypeError):
        return False


def plain(value):
    """A tensor, or a number or array of NumPy, as Python's own; anything else as it is."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def for_json(value):
    """Six significant digits, and null for what JSON does not have."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [for_json(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
