"""Does this machine, launcher and build work? Says what there is, and line by line what to change.

    python -m parle_hpc.doctor                                  # one process
    srun --mpi=pmix python -m parle_hpc.doctor --out $SCRATCH   # as the job will be started, and where it will write
    mpirun -np 4 python -m parle_hpc.doctor --replicas 2

Exit status 0: all is well; 1: something must change; 2: the command line is wrong. No step waits longer than --wait
seconds: what does not answer by then is named in one line, with status 1.
"""

import argparse
import os
import shutil
import socket
import sys
import time

from tabulate import tabulate

from . import findings, probes
from .config import default_replicas
from .failure import BAD_INPUT, OTHERS_WAIT, BadInput, Parser, leave, say
from .placement import placement
from .supervise import LAST, supervised

OTHERS = "another rank may be dead or stuck: see its output"


def options(arguments):
    """The command line. Raises BadInput."""
    parser = Parser("python -m parle_hpc.doctor", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", default=".", metavar="DIR", help="folder for the runs (default: the current one)")
    parser.add_argument("--replicas", type=int, metavar="N", help="as for parle_hpc.train, and with its default")
    parser.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="bound of a step (default: 120)")
    given = parser.parse_args(arguments)
    if not given.wait > 0:
        raise BadInput(f"--wait {given.wait:g}: must be more than 0 seconds")
    return given


def main(arguments=None):
    here = placement(os.environ)
    try:
        given = options(sys.argv[1:] if arguments is None else arguments)
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    step = supervised(here.rank)
    try:
        loaded = load(given, here, step)
    except BadInput as error:
        give_up(error, here, step)
        if here.local_rank == 0:
            # the node of this rank alone has the fault, and rank 0 waits for it in vain
            say(f"rank {here.rank} on {socket.gethostname()}: {error}")
        os._exit(1)
    try:
        found = examine(*loaded, given, here, step)
    except BadInput as error:
        give_up(error, here, step)
        os._exit(1)
    step(LAST, given.wait, OTHERS)
    sys.exit(bool(found))


def give_up(error, here, step):
    """Rank 0 says what is wrong and leaves; the others give it time, since a launcher ends the job with the first."""
    step(LAST, 2 * OTHERS_WAIT, OTHERS)
    if here.rank == 0:
        conclude([str(error)], here.size)
        os._exit(1)
    time.sleep(OTHERS_WAIT)


def load(given, here, step):
    """(topology, MPI, Horovod, n, m), nothing of it started. Raises BadInput where something is missing."""
    step("loading torch, mpi4py and Horovod", given.wait, "the file system of the environment is slow: try --wait 600")
    try:
        from . import topology
    except (ImportError, OSError) as error:
        raise BadInput(f"torch cannot be loaded ({error}); pip install the torch that fits this machine") from None
    n = default_replicas("parle", here.size) if given.replicas is None else given.replicas
    try:
        m = topology.divide(here.size, n)
    except BadInput as error:
        step(LAST, 2 * OTHERS_WAIT, OTHERS)
        leave(str(error), BAD_INPUT)
    topology.prepare_environment(os.environ, len(os.sched_getaffinity(0)))
    try:
        return topology, *topology.load(), n, m
    except BadInput:
        if here.rank == 0:
            show(probes.installed(topology.torch, topology.mpi_libraries()))
        raise


def examine(topology, MPI, hvd, n, m, given, here, step):
    """What must change, a list of lines, known to all ranks. Collective over all ranks.

    Raises BadInput, on all of them, where MPI or Horovod cannot be used at all.
    """
    torch, chief = topology.torch, here.rank == 0
    step("asking for versions and GPUs", given.wait / 4, "the driver or the launcher does not answer on this node")
    software = probes.installed(torch, topology.mpi_libraries())
    software["MPI"] = MPI.Get_library_version().split(",")[0].strip()
    software["Horovod"] += " with NCCL" if hvd.nccl_built() else " without NCCL"
    device, gpu, count = probes.find_device(torch, here.local_rank)
    if chief:
        show({**software, "launcher": probes.launcher(here)})
    step(
        "the start of MPI",
        given.wait,
        "start all ranks with one command, the launcher of this MPI (Slurm: srun --mpi=pmix; srun --mpi=list shows "
        "what there is); between nodes, name the network, as in export OMPI_MCA_btl_tcp_if_include=INTERFACE",
    )
    world = topology.start(MPI, here)
    step("gathering what the ranks see", given.wait, OTHERS)
    cores = frozenset(os.sched_getaffinity(0))
    host = socket.gethostname()
    mine = findings.Rank(here.rank, host, cores, os.cpu_count(), device, gpu, count, software)
    ranks = world.gather(mine)
    if chief:
        print(f"MPI counts {here.size} rank{'s' * (here.size > 1)}, as the launcher does, with MPI_THREAD_MULTIPLE.\n")
        rows = [(r.rank, r.rank // m, r.host, r.device, findings.spans(r.cores)) for r in ranks]
        show_table(("rank", "replica", "host", "device", "cores"), rows)
    step("the start of Horovod in each replica", given.wait, OTHERS)
    groups = topology.Topology(here, n, m)
    step("a reduction inside a replica and across", given.wait, OTHERS)
    rows = probes.reductions(groups, torch)
    if chief:
        show_table(("mean of tensors", "ranks", "latency", "bandwidth", "WRN-28-10 takes"), rows)
    path, sights = look_at_folder(world, host, given, step)
    found = None
    if chief:
        show_table(("output folder on", "shared", "written", "HDF5 lock", "free"), folder_rows(sights))
        found = [
            *findings.different_versions(ranks),
            *findings.shared_cores(ranks, here.launcher),
            *findings.shared_gpus(ranks, here.launcher),
            *findings.slow_gradients(ranks, m, hvd.nccl_built()),
            *findings.folder(sights, path, os.environ.get("HDF5_USE_FILE_LOCKING")),
        ]
        conclude(found, here.size)
    step("telling all ranks", given.wait, OTHERS)
    # not before rank 0 has spoken: a launcher ends the job with the first that leaves with status 1
    return world.bcast(found)


def look_at_folder(world, host, given, step):
    """(path, on rank 0 a Sight of each rank). Rank 0 makes a folder in it, in which all the others write a file."""
    rank, slow = world.Get_rank(), "this file system does not answer; give a folder on another one: --out FOLDER"
    opened = None
    if rank == 0:
        step(f"writing to --out {given.out}", given.wait / 4, slow)
        opened = probes.open_probe(given.out)
    step("hearing of the output folder", given.wait, OTHERS)
    path, probe, error = world.bcast(opened)
    step(f"writing to --out {path}", given.wait / 4, slow)
    sight = probes.look(path, probe, error, rank, host)
    step("gathering how the ranks see the output folder", given.wait, OTHERS)
    sights = world.gather(sight)
    if rank == 0 and probe:
        step(f"removing {probe}", given.wait / 4, slow)
        shutil.rmtree(probe)
    return path, sights


def show(versions):
    show_table(("software", "version"), versions.items())


def show_table(headers, rows):
    print(tabulate(rows, headers, disable_numparse=True), end="\n\n", flush=True)


def folder_rows(sights):
    """One row a host, of its first rank that has something to complain of."""
    rows = []
    for host, here in findings.by_host(sights).items():
        worst = min(here, key=lambda s: (s.seen, not s.write_error, not s.lock_error))
        free = "" if worst.free is None else findings.size(worst.free)
        written = f"no ({worst.write_error})" if worst.write_error else "yes" if worst.seen else ""
        lock = f"no ({worst.lock_error})" if worst.lock_error else "yes" if written == "yes" else ""
        rows.append((host, "yes" if worst.seen else "no", written, lock, free))
    return rows


def conclude(found, size):
    """What to change, or that nothing must."""
    if found:
        print("What to change", *(f"{i}. {line}" for i, line in enumerate(found, 1)), sep="\n", flush=True)
    else:
        print(f"All is well: {size} rank{'s can' if size > 1 else ' can'} train here.", flush=True)


if __name__ == "__main__":
    main()
