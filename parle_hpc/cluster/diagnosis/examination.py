"""What the doctor does, step by step, each bounded from outside (supervise)."""

import os
import shutil
import socket

from ...errors import BAD_INPUT, BadInput
from .. import hold
from ..leftovers import launched
from ..placement import divide
from ..waiting import OTHERS_WAIT, leave
from . import findings, probes, strays
from .supervise import LAST
from .tables import conclude, folder_rows, show, show_table

FOLDER = ("output folder on", "shared", "written", "HDF5 lock", "names forced to disk", "free")
SLOW = "this file system does not answer; give a folder on another one: --out FOLDER"
OTHERS = "another rank may be dead or stuck: see its output"


def load(given, here, step):
    """(MPI, Horovod, m), nothing of it started. Raises BadInput where something is missing."""
    step("loading torch, mpi4py and Horovod", given.wait, "the file system of the environment is slow: try --wait 600")
    try:
        from .. import start, topology
    except (ImportError, OSError) as error:
        raise BadInput(f"torch cannot be loaded ({error}); pip install the torch that fits this machine") from None
    try:
        m = divide(here.size, given.replicas)
    except BadInput as error:
        step(LAST, 2 * OTHERS_WAIT, OTHERS)
        leave(error, BAD_INPUT)
    try:
        launched(os.environ)
        return (*topology.load(), m)
    except BadInput:
        if here.rank == 0:
            import torch

            show(probes.installed(torch, start.mpi_libraries()))
        raise


def examine(MPI, hvd, m, given, here, step, reference_over):
    """What must change, a list of lines, known to all ranks. Collective over all ranks.

    reference_over: as probes.reductions has it.

    Raises BadInput, on all of them, where MPI or Horovod cannot be used at all.
    """
    import torch

    from .. import slurm_job, start, topology

    chief = here.rank == 0
    step("asking for versions and GPUs", given.wait / 4, "the driver or the launcher does not answer on this node")
    software = probes.installed(torch, start.mpi_libraries())
    software["MPI"] = MPI.Get_library_version().split(",")[0].strip()
    software["Horovod"] += " with NCCL" if hvd.nccl_built() else " without NCCL"
    device = probes.find_device(torch, here.local_rank)
    if chief:
        show({**software, "launcher": probes.launcher(here)})
    step(
        "the start of MPI",
        given.wait,
        "start all ranks with one command, the launcher of this MPI (Slurm: srun --mpi=pmix; srun --mpi=list shows "
        "what there is); between nodes, name the network, as in export OMPI_MCA_btl_tcp_if_include=INTERFACE",
    )
    environment = dict(os.environ)
    start.prepare_environment(os.environ, len(os.sched_getaffinity(0)))
    world = start.start(MPI, here)
    step("gathering what the ranks see", given.wait, OTHERS)
    cores = frozenset(os.sched_getaffinity(0))
    host = socket.gethostname()
    mine = findings.Rank(here.rank, host, cores, os.cpu_count(), device, software)
    ranks = world.gather(mine)
    if chief:
        print(f"MPI counts {here.size} rank{'s' * (here.size > 1)}, as the launcher does, with MPI_THREAD_MULTIPLE.\n")
        rows = [(r.rank, r.rank // m, r.host, r.device, findings.spans(r.cores)) for r in ranks]
        show_table(("rank", "replica", "host", "device", "cores"), rows)
    step("the start of Horovod in each replica", given.wait, OTHERS)
    groups = topology.Topology(here, given.replicas, m)
    step("a reduction inside a replica and across", given.wait, OTHERS)
    rows = probes.reductions(groups, torch, reference_over)
    if chief:
        show_table(("mean of tensors", "ranks", "latency", "bandwidth", "WRN-28-10 takes"), rows)
    path, sights = look_at_folder(world, host, given, step)
    found = None
    if chief:
        step("asking Slurm for this job", given.wait, "scontrol does not answer on this node")
        job = slurm_job.name_of_job(environment)
        step(f"looking for a run in --out {path}", 2 * hold.SILENT, SLOW)
        holder = hold.living(path)
        show_table(FOLDER, folder_rows(sights))
        found = [
            *findings.different_versions(ranks),
            *findings.shared_cores(ranks, here.launcher, strays.binding(environment)),
            *findings.shared_gpus(groups.seats, m, here.launcher),
            *findings.slow_gradients(groups.seats, m),
            *findings.folder(sights, path, os.environ.get("HDF5_USE_FILE_LOCKING")),
            *findings.held(path, holder),
            *strays.find(environment, here, groups.threads, job, start.can_be_written),
        ]
        conclude(found, here.size)
    step("telling all ranks", given.wait, OTHERS)
    # not before rank 0 has spoken: a launcher ends the job with the first that leaves with status 1
    return world.bcast(found)


def look_at_folder(world, host, given, step):
    """(path, on rank 0 a Sight of each rank). Rank 0 makes a folder in it, in which all the others write a file."""
    rank, opened = world.Get_rank(), None
    if rank == 0:
        step(f"writing to --out {given.out}", given.wait / 4, SLOW)
        opened = probes.open_probe(given.out)
    step("hearing of the output folder", given.wait, OTHERS)
    path, probe, error = world.bcast(opened)
    step(f"writing to --out {path}", given.wait / 4, SLOW)
    sight = probes.look(path, probe, error, rank, host, given.wait / 24)
    step("gathering how the ranks see the output folder", given.wait, OTHERS)
    sights = world.gather(sight)
    if rank == 0 and probe:
        step(f"removing {probe}", given.wait / 4, SLOW)
        shutil.rmtree(probe)
    return path, sights
