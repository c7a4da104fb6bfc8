"""What a run tells: one JSON object a line for programs; progress, a log and a summary for people.

metrics.jsonl holds an `event` (start, round, validate, end) a line, with `seconds` since the start, `round`, `step`
and `passes` over the data; validate adds errors in percent, round adds gamma, rho, lr, samples_per_second and what the
coupling took, start the number of ranks.
"""

import json
import math
import sys
import time
from datetime import datetime

from tqdm import tqdm


class Metrics:
    """The writer, on world rank 0; elsewhere `folder` is None and every call is free.

    Args:
        folder: output folder, which exists.
        rounds: rounds that the run will have.
        batches_per_pass: B.
    """

    def __init__(self, folder, rounds, batches_per_pass):
        self._folder, self._batches, self._started = folder, batches_per_pass, time.perf_counter()
        terminal = folder is not None and sys.stderr.isatty()
        self._bar = tqdm(total=rounds, unit="round", disable=not terminal, dynamic_ncols=True)

    @property
    def seconds(self):
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def _append(self, name, line):
        if self._folder:
            with open(self._folder / name, "a") as file:
                file.write(line + "\n")

    def event(self, event, round, step, **values):
        """Write one line of metrics.jsonl."""
        line = {"event": event, "seconds": self.seconds, "round": round, "step": step, "passes": step / self._batches}
        line.update(values)
        self._append("metrics.jsonl", json.dumps({key: for_json(value) for key, value in line.items()}))

    def progress(self, loss):
        """One round more on the progress bar, with this rank's training loss."""
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def say(self, message):
        """One line for people, on the screen and, with the time, in train.log."""
        self._append("train.log", f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}")
        if self._folder:
            with self._bar.external_write_mode():
                sys.stdout.write(message + "\n")
                sys.stdout.flush()

    def close(self):
        """Leave the terminal to others."""
        self._bar.close()


def for_json(value):
    """Six significant digits, and null for what JSON does not have."""
    if isinstance(value, (list, tuple)):
        return [for_json(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
