"""The error of what each algorithm would hand over against wall-clock: hosts with shaped links, all in one run.

    python benchmarks/race.py [--rates 25mbit ...] [--hosts 2] [--seeds 0 1 ...] [--rounds 75] [--more 1] [--every 5]
                              [--racers parle diloco ...] [--lr NAME=RATE ...] [--data FILE.h5] [--json race.json]
    python benchmarks/race.py --report FILE.json ... [--target ERROR] [--at SECONDS] [--figure FILE.png]

Needs root (tests/helpers/namespaces.py); elsewhere it says so and ends. LeNet on MNIST, one rank a host. Every racer
(racers.py) has --rounds of 25 mini-batches, those that share a mini-batch of 128 (or the next number that divides)
among all hosts --more times as many; the others have 128 on each host, so they see more samples (Remark 4). The file
is written after each sweep of turns: --report shows what is there of a run that goes on, or was ended.

The clock. Racers take turns of 25 mini-batches, there and back, so that a noisy hour hits all alike. A racer's seconds
are those of its own turns alone, each of the slowest rank, and its bytes what left all hosts in them. Nothing of it is
in flight afterwards, and no wait is charged that training does not have, because a turn ends where the racer waits for
the network anyway. Who waits in the update ends with it. Who hides a reduction behind mini-batches, as Parle does, ends
where the next update would wait for it, its last gradient computed: the coupling begins the next turn. What is then
validated is the reference as it arrived, which has seen up to a round less than was paid for (Elastic-SGD's a
mini-batch), so this is against Parle, never for it; only the last turn ends behind the coupling, and waits for its mean
with nothing to hide it. Off the clock: validation, on all test images, with BatchNorm statistics of 64 mini-batches of
training data, and before it the mean that overlapped DiLoCo wants for it alone; and Horovod's start over all hosts,
which it spans in the turns of who needs it alone (see network.py).
"""

import argparse
import copy
import json
import os
import sys
from pathlib import Path

import torch
from bench import command_line
from hosts import need_hosts, on_hosts
from race_table import LABELS, figure, show

RATES = ("10mbit", "25mbit", "100mbit", "1gbit")
LR = 0.1
HANDED_ON = ("hosts", "rounds", "more", "every", "racers", "lr", "data", "json", "rates", "seeds")


def worker(arguments):
    """One rank of a run, which rank 0 writes into the file and prints."""
    import torch.distributed as dist
    from racers import RACERS, Field, Racer

    from parle_hpc import Topology
    from parle_hpc.settings import load
    from parle_hpc.training.memory import keep_freed
    from parle_hpc.training.opening import open_task

    torch.set_num_threads(1)
    keep_freed()
    if arguments.hosts > len(os.sched_getaffinity(0)):
        # what Topology.split does on a host with more ranks than cores; these take all cores for their own
        os.environ.update(OMPI_MCA_mpi_yield_when_idle="1", HOROVOD_CYCLE_TIME="5")
    topology, a = Topology.split(replicas=arguments.hosts), arguments
    world, rank = topology.world, topology.world.Get_rank()
    team = copy.copy(topology)
    team.n, team.m, team.replica_index, team.place = 1, a.hosts, 0, rank
    address = world.bcast(os.popen("hostname -I").read().split()[0])
    store = f"tcp://{address}:{world.bcast(20000 + os.getpid() % 20000)}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=a.hosts)
    settings = load(["--recipe", "lenet_mnist", "--run.seed", str(a.seeds[0]), "--data.path", a.data])
    field = Field(settings, open_task(settings, topology, Path()), topology, team)
    rates = dict.fromkeys(a.racers, LR) | dict(map(rate_of, a.lr))
    rounds = {name: round(a.rounds * (a.more if RACERS[name].over else 1)) for name in a.racers}
    racers = [Racer(name, field, rounds[name], rates[name]) for name in a.racers]
    run = {"rate": a.rates[0], "hosts": a.hosts, "seed": a.seeds[0], "rounds": rounds, "lr": rates, "rows": []}
    for rows in sweeps(racers, topology, a.every):
        run["rows"] += rows
        if rank == 0:
            keep(run, a.json)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(run))


def sweeps(racers, topology, every):
    """Yield the rows of each sweep of turns, until every racer has finished."""
    import horovod.torch as hvd

    spans, there = topology.replica, True
    while racing := [racer for racer in racers if racer.round < racer.rounds]:
        rows = []
        for racer in racing if there else reversed(racing):
            wanted = topology.world if racer.kind.over == "horovod" else topology.replica
            if wanted is not spans:
                hvd.shutdown()
                hvd.init(comm=wanted)
                spans = wanted
            racer.turn(topology.world)
            now = racer.round <= every or racer.round % every == 0 or racer.round == racer.rounds
            row = {"racer": racer.name, "round": racer.round, "seconds": racer.seconds, "bytes": racer.bytes}
            rows.append(row | {"error": racer.error() if now else None})
        yield rows
        there = not there


def rate_of(given):
    """(Racer, learning rate) of NAME=RATE."""
    name, _, rate = given.partition("=")
    return name, float(rate)


def keep(run, path):
    """Put a run into the file, in place of one of the same rate, hosts and seed."""
    path = Path(path)
    runs = json.loads(path.read_text()) if path.exists() else {}
    runs[f"{run['rate']}, {run['hosts']} hosts, seed {run['seed']}"] = run
    half = path.with_suffix(".part")
    half.write_text(json.dumps(runs, indent=1))
    half.replace(path)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rates", nargs="*", default=RATES, help=f"of the links (default: {' '.join(RATES)})")
    parser.add_argument("--hosts", type=int, default=2, help="a rank on each (default: 2)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="a run for each (default: 0)")
    parser.add_argument("--rounds", type=int, default=75, help="of 25 mini-batches (default: 75)")
    parser.add_argument("--more", type=float, default=1, help="times as many for those that share one (default: 1)")
    parser.add_argument("--every", type=int, default=5, help="rounds between validations, after as many (default: 5)")
    parser.add_argument("--racers", nargs="*", choices=LABELS, default=list(LABELS), help="(default: all)")
    parser.add_argument("--lr", nargs="*", default=[], metavar="NAME=RATE", help=f"of a racer (default: {LR} each)")
    parser.add_argument("--data", default="data/mnist.h5", help="from prepare mnist (default: data/mnist.h5)")
    parser.add_argument("--report", nargs="*", metavar="FILE.json", help="show what is there, and run nothing")
    parser.add_argument("--target", type=float, help="error to reach, in percent (default: SGD's best, Horovod)")
    parser.add_argument("--at", type=float, help="seconds at which errors are compared (default: the quickest racer's)")
    parser.add_argument("--figure", help="draw it there: FILE.png or FILE.svg")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(json="race.json")
    arguments = parser.parse_args()
    for given in arguments.lr:
        if given.partition("=")[0] not in LABELS:
            parser.error(f"--lr {given}: must be NAME=RATE, where NAME is one of {', '.join(LABELS)}")
    if arguments.worker:
        worker(arguments)
        return
    if arguments.report is None:
        run_all(arguments)
    files = [arguments.json] if arguments.report is None else arguments.report
    runs = [run for file in files for run in json.loads(Path(file).read_text()).values()]
    show(runs, arguments.target, arguments.at)
    if arguments.figure:
        figure(runs).savefig(arguments.figure, dpi=160)


def run_all(arguments):
    """A run for each rate and seed, one after the other."""
    need_hosts()
    arguments.data, arguments.json = (str(Path(path).absolute()) for path in (arguments.data, arguments.json))
    for rate in arguments.rates:
        for seed in arguments.seeds:
            one = argparse.Namespace(**{**vars(arguments), "rates": [rate], "seeds": [seed]})
            try:
                on_hosts(one.hosts, rate, one, *HANDED_ON, ranks=one.hosts, timeout=None)
            except KeyboardInterrupt:
                sys.exit(f"ended; what is there: --report {arguments.json}")


if __name__ == "__main__":
    main()
