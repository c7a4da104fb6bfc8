"""What is wrong with a machine, from what its ranks have seen: pure functions that return one line for each fault.

A line says where, what, and the command or setting that puts it right.
"""

from collections import defaultdict
from dataclasses import dataclass

from ..gpus import SOME_WITHOUT, sharing

LEAST_FREE = 100_000_000  # bytes
UNBIND = {
    "Open MPI": "start with mpirun --bind-to none",
    "Slurm": "set #SBATCH --cpus-per-task=CORES and export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK, or start with "
    "srun --cpu-bind=none",
}
FEWER = {"Open MPI": "mpirun --map-by ppr:{}:node", "Slurm": "#SBATCH --ntasks-per-node={}"}


@dataclass(frozen=True)
class Rank:
    """One rank: where it runs, the cores it may use out of those of its node, its device, what it has loaded."""

    rank: int
    host: str
    cores: frozenset
    node_cores: int
    device: str
    versions: dict


@dataclass(frozen=True)
class Sight:
    """The output folder as one rank sees it.

    seen: whether rank 0's new folder in it is there; exists: whether there is a folder of its name. write_error,
    lock_error and sync_error: why it cannot be written, a file in it not locked, and its names not forced to disk (then
    a power cut may cost what was saved last), or None. free: bytes, None where the file system does not say.
    """

    rank: int
    host: str
    seen: bool
    exists: bool
    write_error: str | None = None
    lock_error: str | None = None
    sync_error: str | None = None
    free: int | None = None


def spans(numbers):
    """{0, 1, 2, 5} as "0-2,5"."""
    parts, numbers = [], sorted(numbers)
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def named(ranks):
    """ "rank 3", "ranks 0-2,5"."""
    return f"rank{'s' * (len(ranks) > 1)} {spans(rank.rank for rank in ranks)}"


def by_host(ranks):
    hosts = defaultdict(list)
    for rank in ranks:
        hosts[rank.host].append(rank)
    return hosts


def size(number):
    """Bytes for people: "3.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.{0 if unit == 'bytes' else 1}f} {unit}"
        number /= 1000


def shared_cores(ranks, launcher, binding=()):
    """Ranks that must take turns on a core. Ranks that may use the same cores, enough for all of them, are well.

    binding: variables by which OpenMP binds threads itself, each rank's to the same cores.
    """
    found = []
    for host, here in by_host(ranks).items():
        users = [rank for rank in here if _share(rank, here) < 1 - 1e-9]
        if not users:
            continue
        cores = frozenset().union(*(rank.cores for rank in users))
        fewer = FEWER.get(launcher, "{} a node").format(len(cores))
        unbind = UNBIND.get(launcher, "start them without binding")
        if binding:
            unbind = f"unset {' '.join(binding)}; if that does not help, {unbind}"
        advice = f"start fewer: {fewer}"
        if users[0].node_cores > len(cores):
            advice = f"{unbind}; or, where the job was given no more cores, {advice}"
        found.append(
            f"{named(users)} on {host} take turns on core{'s' * (len(cores) > 1)} {spans(cores)} of its "
            f"{users[0].node_cores}; {advice}"
        )
    return found


def _share(rank, here):
    """Cores that are this rank's share, where a core that k ranks may use counts as 1/k for each of them."""
    return sum(1 / sum(core in other.cores for other in here) for core in rank.cores)


def shared_gpus(seats, m, launcher):
    """Ranks on one GPU, or a GPU for some ranks alone, from the Seats of all, m of them a replica."""
    found = []
    for group, inside in sharing(seats, m):
        first = group[0]
        cards = {seat.card for seat in seats if seat.node == first.node and seat.card}
        fewer = FEWER.get(launcher, "{} a node").format(max(len(cards), first.count))
        then = ", so that their gradients take the way over the host's memory" if inside else ""
        found.append(
            f"{named(group)} on {first.host} share one GPU (GPU {first.number} of {first.count}){then}; start as many "
            f"ranks on a node as it has GPUs: {fewer}"
        )
    without = [seat for seat in seats if seat.number is None]
    if 0 < len(without) < len(seats):
        found.append(f"{named(without)} on {', '.join(by_host(without))} {SOME_WITHOUT}")
    return found


def different_versions(ranks):
    """Nodes whose software differs."""
    found = []
    for name in ranks[0].versions:
        hosts = defaultdict(list)
        for host, here in by_host(ranks).items():
            hosts[here[0].versions[name]].append(host)
        if len(hosts) > 1:
            said = ", ".join(f"{version} on {' '.join(names)}" for version, names in hosts.items())
            found.append(
                f"{name} differs: {said}; use one environment for all nodes, in a folder that all of them mount"
            )
    return found


def slow_gradients(seats, m):
    """GPUs whose gradients go through the host's memory for want of NCCL."""
    if m == 1 or all(seat.nccl or seat.number is None for seat in seats):
        return []
    return [
        "Horovod was built without NCCL, so gradients take the way over the host's memory; load the CUDA module and "
        "build it again: python install/horovod.py; on AMD GPUs let a replica be one GPU: --replicas TASKS"
    ]


def folder(sights, path, locking):
    """What is wrong with the output folder. locking: the user's HDF5_USE_FILE_LOCKING, None where unset."""
    found, writer = [], sights[0]
    elsewhere = "give a folder on a file system that all nodes mount: --out FOLDER"
    for exists, is_there in ((False, "is not there"), (True, "is another one")):
        hosts = by_host(s for s in sights if not s.seen and s.exists == exists)
        if hosts:
            found.append(
                f"the output folder {path} is not shared: the one that rank 0 on {writer.host} sees {is_there} on "
                f"{', '.join(hosts)}; {elsewhere}"
            )
    for host, here in by_host(s for s in sights if s.write_error).items():
        found.append(f"--out {path}: cannot be written on {host} ({here[0].write_error}); give a folder that can")
    if locking is not None and locking.upper() not in ("FALSE", "0", "BEST_EFFORT"):
        for host, here in by_host(s for s in sights if s.lock_error).items():
            found.append(
                f"files in {path} cannot be locked on {host} ({here[0].lock_error}), but "
                f"HDF5_USE_FILE_LOCKING={locking} asks for it; export HDF5_USE_FILE_LOCKING=FALSE"
            )
    least = min((s for s in sights if s.free is not None), key=lambda s: s.free, default=None)
    if least and least.free < LEAST_FREE:
        found.append(f"{size(least.free)} are free in {path} on {least.host}; make room, or give another folder: --out")
    return found


def held(path, holder):
    """A run that trains into the folder at this moment, in words, or None."""
    return [f"--out {path}: {holder} trains into it; give each run a folder of its own"] if holder else []
