"""machine.toml: what a machine can do, as `python -m parle_hpc.plan --probe` measures it, or typed in by hand.

name = "two nodes of four"          # for the table's head
measured = true                     # false: from public figures, which `source` names
device = "cuda"                     # or "cpu"
ranks_per_node = 4
memory = 80e9                       # bytes that a rank has
inside = {latency = 2e-5, bandwidth = 1.5e11}     # seconds a message, bytes a second: between ranks of a node
across = {latency = 5e-5, bandwidth = 1.2e10}     # between nodes, of a node's card: the mean of the replicas (MPI)
between = {latency = 2e-5, bandwidth = 2e10}      # the same, gradients of a replica that spans nodes (Horovod)
disk = 2e9                          # bytes a second into a checkpoint, of all ranks together
copy = 1e10                         # bytes a second of the copy of a state that a checkpoint waits for
node_mtbf = 2e7                     # seconds in which a node fails once, on average
restart = 300.0                     # seconds from a failure to the next mini-batch
flops = 1.2e14                      # operations a second of a rank, of a recipe that was not probed

[work.wrn_cifar10]                  # what was probed, on one rank: mini-batches of two sizes
parameters = 36479194
training_samples = 50000
samples = [32, 128]
seconds = [0.05, 0.14]              # a mini-batch, forward, backward and step
noise = 0.02                        # standard deviation of it, over its mean
moves = 0.004                       # seconds of (8c)
memory = [2.1e9, 7.4e9]             # bytes at the peak, less what the state takes
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import tomlkit
import tomlkit.exceptions
from pydantic import Field, ValidationError, model_validator

from ..cluster.durable import write_whole
from ..errors import BadInput, brief, complaint, nearest
from ..settings.sections import Section
from . import model

MACHINES = resources.files(__package__) / "machines"
Positive = Annotated[float, Field(gt=0)]
Both = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]


class Link(Section):
    latency: float = Field(ge=0)
    bandwidth: Positive

    @property
    def model(self):
        """The same, as planning.model takes it."""
        return model.Link(self.latency, self.bandwidth)


class Work(Section):
    parameters: int = Field(ge=1)
    training_samples: int = Field(ge=1)
    samples: Both
    seconds: Both
    noise: float = Field(0.0, ge=0)
    moves: float = Field(0.0, ge=0)
    memory: Both

    @model_validator(mode="after")
    def _two_sizes(self):
        if not 0 < self.samples[0] < self.samples[1]:
            raise ValueError("samples must be two sizes of a mini-batch, the smaller first")
        return self

    def at(self, samples, values):
        """One of `seconds` and `memory` for a mini-batch of so many samples: on the line through both sizes."""
        (small, large), (low, high) = self.samples, values
        return max(0.0, low + (high - low) / (large - small) * (samples - small))


class Machine(Section):
    name: str
    measured: bool
    source: str = ""
    device: Literal["cuda", "cpu"]
    ranks_per_node: int = Field(ge=1)
    memory: Positive
    inside: Link
    across: Link
    between: Link
    disk: Positive
    copied: Positive = Field(alias="copy")
    node_mtbf: Positive
    restart: float = Field(ge=0)
    flops: Positive | None = None
    work: dict[str, Work] = Field(default_factory=dict)


def read(name):
    """The Machine of a file, or of those that come with parle_hpc. Raises BadInput."""
    path = Path(name) if name.endswith(".toml") else MACHINES / f"{name}.toml"
    if not path.is_file():
        known = sorted(each.name.removesuffix(".toml") for each in MACHINES.iterdir())
        raise BadInput(
            f"--machine {brief(name)}: no such file or machine; {nearest(name, known)}, or --probe writes it"
        )
    try:
        return Machine(**tables_of(path))
    except ValidationError as error:
        raise BadInput(f"--machine {name}: {told(error)}") from None


def tables_of(path):
    """The tables of a TOML file. Raises BadInput."""
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (tomlkit.exceptions.TOMLKitError, ValueError, OSError) as error:
        raise BadInput(f"--machine {path} is not a TOML file: {error}") from None


def told(error):
    """The first complaint of pydantic, as a line's end."""
    first = error.errors()[0]
    key = brief(".".join(map(str, first["loc"])))
    if first["type"] == "missing":
        return f"lacks {key}; the probe measures it on two nodes or more, or type it in (docs/scaling.md)"
    if first["type"] == "extra_forbidden":
        return f"{key} is no figure of a machine; leave it out"
    return f"{key} {complaint(first)}"


def write(tables, name):
    """Write a probe's tables; the line that says so.

    What it could not measure, and the work of other recipes, stay as the file has them. Raises BadInput.
    """
    path = Path(name)
    before = tables_of(path) if path.is_file() else {}
    tables = {**before, **tables, "work": {**before.get("work", {}), **tables["work"]}}
    try:
        write_whole(path, tomlkit.dumps(tables).encode())
    except OSError as error:
        raise BadInput(f"--machine {name}: cannot be written ({error.strerror}); give a file that can") from None
    missing = [key for key in ("inside", "across", "between") if key not in tables]
    lacks = f"; it lacks {', '.join(missing)}, which two nodes or more can measure" if missing else ""
    return f"written {path}{lacks}"
