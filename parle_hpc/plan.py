"""What will a run cost on a machine, also on one that is not at hand?

    srun --mpi=pmix python -m parle_hpc.plan --probe --recipe R            # there, on two nodes: writes machine.toml
    python -m parle_hpc.plan --recipe R --machine machine.toml --nodes 16  # anywhere
    python -m parle_hpc.plan --recipe R --machine perlmutter --nodes 16    # a machine from public figures, not measured

A table of shapes: memory, bytes, seconds a round and what of them is hidden or waited for, and the whole run; which
term limits; and the line for sbatch. Any setting of the trainer may follow, such as --replicas 4 or --algorithm.L 50.
docs/scaling.md says how good it is. Exit status 2: something in the input is wrong.
"""

import argparse
import os
import sys
from pathlib import Path

from .cluster.leftovers import launched
from .cluster.placement import divide
from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paths import as_path
from .settings import load, settle


def options(arguments):
    """(The planner's own options, the rest, which is the trainer's). Raises BadInput."""
    parser = Parser(
        "python -m parle_hpc.plan",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--machine", type=as_path, default="machine.toml", metavar="NAME or FILE.toml")
    parser.add_argument("--nodes", type=count, default=1, metavar="N")
    parser.add_argument("--gpus-per-node", type=count, metavar="G", help="ranks on each node (default: the machine's)")
    parser.add_argument("--simulate", action="store_true", help="100 rounds of the best, event by event")
    parser.add_argument("--probe", action="store_true", help="measure this machine, and write --machine")
    return parser.parse_known_args(arguments)


def count(text):
    """A whole number of at least 1, for a command line."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def main(arguments=None):
    try:
        given, rest = options(sys.argv[1:] if arguments is None else arguments)
        settings = load(rest)
        if given.probe:
            measure(given, settings)
        else:
            plan(given, settings, rest)
    except BadInput as error:
        leave(error, BAD_INPUT)


def plan(given, settings, rest):
    """Print the table. Raises BadInput."""
    from .planning import machine, shapes, simulator, table, work

    found = machine.read(given.machine)
    per_node = given.gpus_per_node or found.ranks_per_node
    settle_shape(settings, given.nodes * per_node)
    probed = work.work_of(settings, found)
    own, best, others = shapes.costs(rest, settings, found, probed, given.nodes, per_node)
    kind = "measured" if found.measured else f"not measured: {found.source}"
    print(f"{settings.recipe or settings.task.file} on {found.name} ({kind}), {given.nodes} nodes of {per_node}\n")
    print(table.table([*own, *others], best, found.memory), end="\n\n")
    print(table.limit(best), table.checkpoint(best, found.node_mtbf), sep="\n")
    if given.simulate:
        print(*simulator.compared(best, found, probed), sep="\n")
    print(table.sbatch(best, settings, rest, found.device))


def settle_shape(settings, ranks):
    """Raises BadInput where the settings exclude each other, or the ranks do not divide into --replicas."""
    if settings.algorithm.inside == "workers":
        raise BadInput("--algorithm.inside workers: the planner has no formula for it; leave it out")
    replicas = settings.replicas
    settle(settings, ranks)
    divide(ranks, settings.replicas)
    # the number that a run would take is no wish
    settings.replicas = replicas


def measure(given, settings):
    """Measure this machine with all ranks of the job, and write the file. Raises BadInput."""
    here = launched(os.environ)
    local = here.local_size or here.size
    nodes = settings.replicas or max(1, here.size // local)
    settle(settings, here.size)
    divide(here.size, nodes)
    from .cluster.topology import Topology
    from .planning import machine, probe

    topology = Topology.split(replicas=nodes)
    tables = probe.probe(settings, topology, Path())
    if here.rank == 0:
        print(machine.write(tables, given.machine))


if __name__ == "__main__":
    main()
