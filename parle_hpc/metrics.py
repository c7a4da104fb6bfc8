"""What a run tells: one JSON object a line for programs; progress, a log and a summary for people.

metrics.jsonl holds an `event` (start, round, validate, end) a line, with `seconds` since the start, `round`, `step`
and `passes` over the data; validate adds errors in percent, round adds gamma, rho, lr, samples_per_second and what the
coupling took.
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
        self._batches, self._started = batches_per_pass, time.perf_counter()
        self._json = open(folder / "metrics.jsonl", "a") if folder else None
        self._log = open(folder / "train.log", "a") if folder else None
        terminal = folder is not None and sys.stderr.isatty()
        self._bar = tqdm(total=rounds, unit="round", disable=not terminal, dynamic_ncols=True)
        self._rounds = rounds

    @property
    def seconds(self):
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def event(self, event, round, step, **values):
        """Write one line of metrics.jsonl."""
        if self._json:
            line = {"event": event, "seconds": round_to(self.seconds), "round": round, "step": step}
            line["passes"] = round_to(step / self._batches)
            line.update({key: round_to(value) for key, value in values.items()})
            self._json.write(json.dumps(line) + "\n")
            self._json.flush()

    def progress(self, loss):
        """One round more on the progress bar, with this rank's training loss."""
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def say(self, message):
        """One line for people, on the screen and, with the time, in train.log."""
        if self._log:
            self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
            self._log.flush()
            with self._bar.external_write_mode():
                sys.stdout.write(message + "\n")
                sys.stdout.flush()

    def close(self):
        self._bar.close()
        for file in (self._json, self._log):
            if file:
                file.close()


def round_to(value):
    """Six significant digits, and null for what JSON does not have."""
    if isinstance(value, (list, tuple)):
        return [round_to(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
