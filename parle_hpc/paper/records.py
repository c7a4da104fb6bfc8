"""Runs as they lie on disk, read for reports: their settings, their events, and which of them differ by seed alone."""

import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import BadInput
from ..settings import DATA_PARALLEL, load

ALGORITHM_NAMES = {
    "parle": "Parle",
    "elastic_sgd": "Elastic-SGD",
    "entropy_sgd": "Entropy-SGD",
    "sgd": "SGD",
    "sam": "SAM",
    "diloco": "DiLoCo",
    "local_sgd": "local SGD",
}
DATA_NAMES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN"}
# settings that do not make one run's result another kind of result
INCIDENTAL = {
    "data": {"path", "node_copy", "checksum", "device_memory"},
    "coupling": {"folder", "member"},
    "run": {
        *("seed", "save_replicas", "validate_every", "device", "trace", "compile"),
        *("checkpoint_every", "checkpoint_minutes", "keep", "check_every", "patience", "grace"),
    },
    "recipe": True,
    "out": True,
}


class Event(BaseModel):
    """One line of metrics.jsonl, of which the reports need this much."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    event: str
    seconds: float = Field(ge=0)
    step: int = Field(ge=0, lt=2**63)
    passes: float = Field(ge=0)
    ranks: int | None = Field(None, ge=1)


class Round(Event):
    event: Literal["round"]
    samples_per_second: float = Field(gt=0)
    coupling_seconds: float = Field(ge=0)
    coupling_wait_seconds: float = Field(ge=0)
    coupling_bytes_sent: float = Field(0.0, ge=0)
    gradient_bytes_sent: float = Field(0.0, ge=0)


Percent = Annotated[float, Field(ge=0, le=100)]


class Validate(Event):
    event: Literal["validate"]
    # of images, in percent; scores of other tasks are any numbers
    val_error: Percent | None = None
    train_error: Percent | None = None
    replica_error: list[Percent] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def whole(self):
        """A score of the validation samples, and the same one of the training samples; numbers, or lists of them."""
        given = {**self.model_extra, **self.model_dump(include={"val_error", "train_error"}, exclude_none=True)}
        name = score_of(given)
        if name is None or f"train_{name}" not in given:
            raise ValueError("a validation has val_NAME and train_NAME")
        for key in (f"val_{name}", f"train_{name}", f"replica_{name}"):
            values = given.get(key, 0.0)
            for value in values if isinstance(values, list) and values else [values]:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{key} must be a number")
        return self


def score_of(event):
    """The name of a validation's first score, such as error; None where it has none."""
    named = (key.removeprefix("val_") for key in event if key.startswith("val_"))
    return next((name for name in named if name != "loss"), None)


KINDS = {"round": Round, "validate": Validate}


def read_events(path, kinds=KINDS, torn=False):
    """The lines of metrics.jsonl as dicts. Raises BadInput, with the line's number, for what no run writes.

    Args:
        kinds: {event: what such a line must hold}; of any other event no more than every line has.
        torn: the last line may be half written, by a run that goes on; then it does not count.
    """
    events = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        try:
            event = Event.model_validate_json(line)
            event = kinds.get(event.event, Event).model_validate_json(line)
        except ValidationError as error:
            if torn and number == len(lines):
                break
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"]))
            raise BadInput(f"{path}, line {number}, is not what a run writes ({what}: {first['msg']})") from None
        events.append(event.model_dump(exclude_none=True))
    return events


class Record:
    """One run.

    Attributes:
        folder, settings: where it lies, and its Settings.
        validations: its validate events, at least one.
        score: name of its task's first score; lower_is_better: of it.
        finished: whether it came to its end.
        ranks: their number; None where an older run did not write it.
        minutes: from start to the last event.
        progress: {measure: what was spent of it at each validation}: mini-batches of a replica, gradients (of a million
            samples, of all replicas), MB that a rank sent, and minutes.
        coupling, waited: seconds of (8c) and (8d), and of waiting in them, in percent of the time of the mini-batches.

    Raises BadInput where the folder holds no run that was validated.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in ("config.toml", "metrics.jsonl"):
            if not os.path.isfile(self.folder / name):
                raise BadInput(f"{folder} holds no run: {name} is missing")
        # the options of a task of one's own as they stand: its file may be gone, and a report runs nobody's code
        self.settings = load(["--recipe", str(self.folder / "config.toml")], open_task=False)
        events = read_events(self.folder / "metrics.jsonl")
        self.validations = [event for event in events if event["event"] == "validate"]
        self.finished = any(event["event"] == "end" for event in events)
        # those that it has had last
        self.ranks = next((event["ranks"] for event in reversed(events) if "ranks" in event), None)
        self.lower_is_better = events[0].get("lower_is_better", True) if events else True
        if not self.validations:
            raise BadInput(f"{folder} has not been validated yet; let it go on")
        self.score = score_of(self.validations[0])
        rounds = [event for event in events if event["event"] == "round"]
        self._time(rounds)
        self.progress = self._spent(rounds)
        self.minutes = events[-1]["seconds"] / 60

    def _time(self, rounds):
        size, replicas = self.settings.data.batch_size, self.settings.replicas or 1
        steps = np.diff([0, *(event["step"] for event in rounds)])
        counts = [sum(e.get("mini_batches", [n] * replicas)) for n, e in zip(steps, rounds, strict=True)]
        seconds = sum(size * count / e["samples_per_second"] for count, e in zip(counts, rounds, strict=True))
        coupling = sum(event["coupling_seconds"] for event in rounds)
        waited = sum(event["coupling_wait_seconds"] for event in rounds)
        compute = seconds - coupling
        self.coupling, self.waited = (100 * part / compute if compute > 0 else 0.0 for part in (coupling, waited))

    def _spent(self, rounds):
        s, steps = self.settings, np.array([event["step"] for event in self.validations])
        passes = 2 if s.algorithm.name == "sam" else 1  # forward and backward, a mini-batch
        sent = np.cumsum([0, *(event["coupling_bytes_sent"] + event["gradient_bytes_sent"] for event in rounds)])
        # a validation is told after the round in which it falls
        done = np.searchsorted([event["step"] for event in rounds], steps, side="right")
        return {
            "mini-batches": steps + 1,
            "gradients": (steps + 1) * s.data.batch_size * (s.replicas or 1) * passes / 1e6,
            "MB": sent[done] / 1e6,
            "minutes": np.array([event["seconds"] for event in self.validations]) / 60,
        }

    @property
    def last(self):
        """The last validation."""
        return self.validations[-1]


def kind_of(settings):
    """The settings that make the result, as one string: equal for runs that differ by seed alone."""
    return settings.model_dump_json(exclude=INCIDENTAL)


class Group:
    """Runs that differ by seed alone.

    Attributes:
        records, finished: all of them, and those that came to their end.
        settings: of the first.
        label: algorithm, replicas, part of the data; and what else tells it from the other groups of a report.
    """

    def __init__(self, records):
        self.records = sorted(records, key=lambda record: record.settings.run.seed)
        self.finished = [record for record in self.records if record.finished]
        self.settings = self.records[0].settings
        self.algorithm, self.n = self.settings.algorithm.name, self.settings.replicas or 1
        self.fraction, self.score = self.settings.data.fraction, self.records[0].score
        self.percent, self.lower_is_better = self.score == "error", self.records[0].lower_is_better
        self.label = ALGORITHM_NAMES[self.algorithm]
        if self.algorithm not in DATA_PARALLEL:
            self.label += f", n = {self.n}"
        if self.fraction < 1:
            self.label += f", {100 * self.fraction:g} % of the data"

    @property
    def subject(self):
        """The network and its data, e.g. LeNet on MNIST; of a task of one's own its name and score."""
        data, task = self.settings.data, self.settings.task
        if task.file:
            better = "" if self.lower_is_better else ", higher is better"
            return f"{task.name or Path(task.file).stem} ({self.score}{better})"
        if task.name == "language":
            return f"GPT of {task.depth} x {task.width} on {data.name} ({self.score})"
        part = f" (first {data.samples:,} images)" if data.samples else ""
        return f"{network_name(self.settings.model)} on {DATA_NAMES.get(data.name, data.name)}{part}"

    @property
    def file(self):
        """What files about it are called, without what they end in."""
        data, task = self.settings.data, self.settings.task
        name = task.name or Path(task.file).stem if task.file else task.name or self.settings.model.name
        return name if task.file else f"{name}-{data.name}"

    @property
    def steps(self):
        """Mini-batches a replica of the longest run."""
        return max(record.last["step"] for record in self.records)

    def values(self, what):
        """Of each finished run the last score of `what`: val, train, or replica, of which it is the mean."""
        key = f"{what}_{self.score}"
        return np.array([np.mean(record.last[key]) for record in self.finished if key in record.last])

    def curve(self, what, x):
        """Points (x, mean, standard deviation) over seeds, at the validations that all runs have.

        what: val or train, of which it is the score. x: passes, or seconds (given in minutes).
        """
        key = f"{what}_{self.score}"
        count = min(len(record.validations) for record in self.records)
        table = np.array([[(v[x], v[key]) for v in record.validations[:count]] for record in self.records], float)
        means, deviation = table.mean(0), spread(table[:, :, 1])
        return means[:, 0] / (60 if x == "seconds" else 1), means[:, 1], deviation


def spread(values):
    """Standard deviation over the runs (axis 0), of a sample; 0 for one run."""
    return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def network_name(model):
    """What the paper calls it."""
    if model.name == "wrn":
        return f"WRN-{model.depth or 28}-{model.widen or 10}"
    if model.name == "allcnn":
        return "All-CNN" if model.channels in (None, 96) else f"All-CNN of {model.channels} channels"
    return "LeNet"


def read_groups(folders):
    """The groups of the runs in `folders`, in the order of the paper's columns. Raises BadInput for what is no run."""
    kinds = {}
    for folder in {Path(folder).resolve(): folder for folder in folders}.values():
        record = Record(folder)
        kinds.setdefault(kind_of(record.settings), []).append(record)
    groups = [Group(records) for records in kinds.values()]
    order = list(ALGORITHM_NAMES)
    groups.sort(key=lambda g: (g.subject, -g.fraction, order.index(g.algorithm), g.n))
    for group in groups:
        alike = [g for g in groups if (g.subject, g.label) == (group.subject, group.label)]
        if len(alike) > 1:
            distinguish(alike)
    return groups


def distinguish(groups):
    """Add to the labels of groups that would have the same one the settings in which they differ."""
    flat = [{f"{s}.{k}": v for s, t in g.settings.model_dump(exclude=INCIDENTAL).items() if isinstance(t, dict)
             for k, v in t.items()} for g in groups]  # fmt: skip
    differ = [key for key in flat[0] if len({str(settings[key]) for settings in flat}) > 1]
    for group, settings in zip(groups, flat, strict=True):
        group.label += ", " + ", ".join(f"{key.partition('.')[2]} = {settings[key]}" for key in differ)
