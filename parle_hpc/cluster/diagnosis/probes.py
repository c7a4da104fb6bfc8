"""What a rank can find out: what is installed, its device, how fast reductions are, how it sees a folder.

Nothing here judges; that is for findings.py.
"""

import fcntl
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from .. import gpus
from .findings import Sight, size

WRN = 36.5e6 * 4  # bytes of WRN-28-10's weights
SMALL, MEDIUM, LARGE = 1, 1 << 18, 1 << 23  # floats that are reduced
QUICK = 0.05  # seconds in which a MEDIUM reduction ends where a LARGE one can be afforded
LAUNCHERS = {"Open MPI": "mpirun", "Slurm": "srun", "PALS": "mpiexec", "PMI": "mpiexec"}


def installed(torch, libraries):
    """{name: version} of what matters here, as far as it is installed. libraries: the MPI libraries that are loaded."""
    versions = {"parle_hpc": "", "Python": platform.python_version(), "torch": ""}
    versions["CUDA"] = torch.version.cuda or f"none ({torch.version.hip or 'torch is a build for the CPU'})"
    versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "none"
    versions.update({"MPI": "not started", "MPI library": " and ".join(libraries) or "none"})
    versions.update({"mpi4py": "", "Horovod": "", "h5py": ""})
    for name in [name for name, version in versions.items() if not version]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def launcher(here):
    """What started the ranks, with its version where the command on PATH tells it."""
    command, told = shutil.which(LAUNCHERS.get(here.launcher, "")), ""
    if command:
        told = subprocess.run([command, "--version"], capture_output=True, text=True).stdout.strip().split("\n")[0]
    return f"{told or here.launcher}, {here.size} rank{'s' * (here.size > 1)}"


def find_device(torch, local_rank):
    """The device that the trainer would take, for the table."""
    count, *found = gpus.find(torch.cuda, local_rank, os.environ)
    return f"GPU {found[0]} of {count}, {torch.cuda.get_device_properties(found[0]).name}" if count else "cpu"


class Reduction(NamedTuple):
    """A mean of tensors between so many ranks: seconds of one float, and of `floats`. One rank sends nothing."""

    name: str
    ranks: int
    latency: float = 0.0
    floats: int = 0
    seconds: float = 0.0


def measured(groups, torch, reference_over):
    """The Reductions inside a replica and across, on the trainer's own ways. Collective over all ranks.

    reference_over: what gives the elastic reference over a communicator, coupling.choice.reference_over.
    """
    # a run refuses GPUs for some alone, and the doctor has more to say
    device = groups.device("auto" if all(seat.count for seat in groups.seats) else "cpu")

    def inside(count):
        p = torch.nn.Parameter(torch.zeros(count, device=device))
        p.grad = torch.zeros_like(p)

        def body():
            groups.average_gradients([p])
            p.grad[0].item()

        return body

    def across(count):
        x = torch.zeros(count, device=device)
        reference = reference_over(groups.cross, x)

        def body():
            reference.start(x)
            reference.collect()[0].item()

        return body

    found = []
    for name, body, ranks in (
        ("inside a replica (Horovod)", inside, groups.m),
        ("across replicas (MPI)", across, groups.n),
    ):
        if ranks == 1:
            found.append(Reduction(name, 1))
            continue
        latency = seconds(body(SMALL), groups.world, 20)
        count = MEDIUM if seconds(body(MEDIUM), groups.world, 3) > QUICK else LARGE
        found.append(Reduction(name, ranks, latency, count, seconds(body(count), groups.world, 3)))
    return found


def reductions(groups, torch, reference_over):
    """Rows of the table of reductions; arguments and ranks as `measured` has them."""
    rows = []
    for name, ranks, latency, floats, took in measured(groups, torch, reference_over):
        if ranks == 1:
            rows.append((name, 1, "sends nothing", "", ""))
            continue
        # what each rank sends at least, which is also what it gets
        sent = 2 * (ranks - 1) / ranks
        bandwidth = sent * 4 * floats / took
        takes = f"{sent * WRN / bandwidth:.2g} s"
        rows.append((name, ranks, f"{1e6 * latency:,.0f} us", f"{size(bandwidth)}/s", takes))
    return rows


def seconds(body, world, repeat):
    """Median seconds of body(), of the slowest rank. Collective over all ranks."""
    taken = []
    for _ in range(repeat):
        world.Barrier()
        started = time.perf_counter()
        body()
        taken.append(time.perf_counter() - started)
    return max(world.allgather(statistics.median(taken)))


def open_probe(out):
    """(path of the folder `out`, a new folder in it or None, why it cannot be written or None)."""
    path = Path(out).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        return path, Path(tempfile.mkdtemp(prefix=".doctor-", dir=path)), None
    except OSError as error:
        return path, None, error.strerror


def look(path, probe, error, rank, host, spreads):
    """How this rank sees the folder that open_probe described: a Sight.

    spreads: seconds after which a network file system shows a new folder to all nodes.
    """
    if probe is None:
        return Sight(rank, host, rank == 0, True, write_error=error if rank == 0 else None)
    until = time.monotonic() + spreads
    while not probe.exists():
        if time.monotonic() > until:
            return Sight(rank, host, False, path.exists())
        time.sleep(0.1)
    write_error = lock_error = sync_error = None
    try:
        with open(probe / str(rank), "w") as file:
            file.write("written")
            os.fsync(file.fileno())
            try:
                # what HDF5 does with a file that it writes
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as refused:
                lock_error = refused.strerror
    except OSError as refused:
        write_error = refused.strerror
    try:
        descriptor = os.open(probe, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as refused:
        sync_error = refused.strerror
    usage = shutil.disk_usage(probe)
    free = usage.free if usage.total else None
    return Sight(rank, host, True, True, write_error, lock_error, sync_error, free)
