"""The planner's predictions beside what is measured: hosts of network namespaces, settings that nothing was fitted to.

    python benchmarks/plan.py [--rounds 3] [--only WORD ...] [--json FILE]

Needs root (tests/helpers/namespaces.py); elsewhere it says so and ends. First the probe: two hosts of two ranks over
links of a rate that no setting has, which gives latency and bandwidth inside and across (that of another rate is in
the ratio of the rates), and each recipe by itself on two ranks, which gives the memory of two sizes of a mini-batch.
Then the settings, each a start of the trainer's own loop without validation: medians of its rounds' seconds, of the
slowest rank; the peak of the fullest rank. What a mini-batch computes is timed as the probe does it, in the same start
and after the rounds, with all of its ranks at work: here they share the cores of one machine, whose speed wanders. The
simulator gets the same figures, and the mini-batches' spread. Prints prediction, measurement and miss of each setting,
and the medians of the misses.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench import command_line, write
from helpers.namespaces import Cluster
from hosts import need_hosts

PROBED = 50  # Mbit/s
RECIPES = {
    "lenet": ["--recipe", "lenet_digits"],
    "gpt": ["--recipe", "gpt_text", "--data.batch_size", "8"],
    "wrn": ["--model.name", "wrn", "--model.depth", "10", "--model.widen", "4"],
    "allcnn": ["--model.name", "allcnn"],
}
for name in ("wrn", "allcnn"):
    RECIPES[name] += [
        "--recipe",
        "lenet_digits",
        "--data.batch_size",
        "8",
        "--algorithm.L",
        "10",
        "--schedule.lr",
        "1e-4",
    ]


class Setting(NamedTuple):
    """n replicas of m ranks over hosts whose links have a rate in Mbit/s."""

    recipe: str
    hosts: int
    n: int
    m: int
    rate: int
    more: tuple = ()

    def __str__(self):
        told = " ".join(part.rpartition(".")[2] for part in self.more)
        return f"{self.recipe} {told}".strip()


WAITS = ("--algorithm.reference", "average")
DILOCO = ("--algorithm.name", "diloco")
SGD = ("--algorithm.name", "sgd")
# LeNet's half a megabyte only where it is hidden: the first 128 kB through an idle link cost nothing here (its bucket)
SETTINGS = (
    Setting("lenet", 2, 2, 1, 25),
    Setting("gpt", 2, 2, 1, 100),
    Setting("gpt", 2, 2, 1, 20),
    Setting("wrn", 2, 2, 1, 100, WAITS),
    Setting("wrn", 2, 2, 1, 40, DILOCO),
    Setting("allcnn", 2, 2, 1, 40),
    Setting("allcnn", 2, 1, 2, 200, SGD),
    Setting("wrn", 2, 1, 2, 100, SGD),
    Setting("gpt", 2, 2, 2, 20),
    Setting("gpt", 2, 4, 1, 20),
    Setting("gpt", 3, 3, 1, 20),
    Setting("wrn", 4, 4, 1, 40),
    Setting("gpt", 4, 4, 1, 40, WAITS),
    Setting("gpt", 4, 2, 2, 100),
    Setting("gpt", 4, 4, 1, 20, ("--algorithm.payload", "bfloat16")),
    Setting("lenet", 8, 8, 1, 25),
    Setting("gpt", 8, 8, 1, 40),
    Setting("gpt", 8, 8, 1, 20, WAITS),
)


def worker(way, rounds, replicas, arguments):
    """One rank: print, on rank 0, what was measured as JSON. way: "links", "work" or "rounds"."""
    import torch

    from parle_hpc import Session, Topology
    from parle_hpc.planning import probe
    from parle_hpc.settings import load, settle
    from parle_hpc.training.memory import keep_freed
    from parle_hpc.training.opening import open_task

    # each host takes all cores for its own, and they are the same
    os.environ["OMP_NUM_THREADS"] = "1"
    if int(os.environ["OMPI_COMM_WORLD_SIZE"]) > len(os.sched_getaffinity(0)):
        os.environ.update(OMPI_MCA_mpi_yield_when_idle="1", HOROVOD_CYCLE_TIME="5")
    torch.set_num_threads(1)
    keep_freed()
    topology, device, settings = Topology.split(replicas=replicas), torch.device("cpu"), load(arguments)
    settings.replicas, settings.run.precision = replicas, "fp32"
    settle(settings, topology.world.Get_size())
    if way == "links":
        found = probe.links(topology, device)
    elif way == "work":
        train = open_task(settings, topology, Path()).train
        found = probe.work_of(settings, train, topology, device).model_dump()
    else:
        out = tempfile.mkdtemp() if topology.world.Get_rank() == 0 else None
        with Session(out=topology.world.bcast(out), topology=topology) as session:
            found = trained(settings, session, rounds)
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def trained(settings, session, rounds):
    """{name: what was measured} of some rounds of the trainer's loop, and then of the probe's mini-batches."""
    from parle_hpc.planning import probe
    from parle_hpc.training.loop import one_round
    from parle_hpc.training.setup import set_up

    topology, parts, ends = session.topology, set_up(settings, session), []
    for _ in session.rounds(rounds + 1):
        one_round(parts)
        # from end to end: the mean travels between two rounds as well
        ends.append(time.perf_counter())
    parts.optimizer.finish()
    seconds = np.max(topology.world.allgather(np.diff(ends)), 0).tolist()
    device = parts.computing.device
    peak = max(topology.world.allgather(probe.peak(device)))
    share = settings.data.batch_size // topology.m
    steps, moves, _ = probe.timed(settings, parts.loader._source, topology, device, share)
    step = np.mean(topology.world.allgather([np.median(steps), probe.spread(steps), moves]), 0).tolist()
    return {"seconds": seconds, "peak": peak, "step": step}


def start(hosts, ranks, rate, *arguments):
    """What this program, as a worker, prints on ranks over hosts with links of a rate in Mbit/s."""
    with Cluster(hosts) as cluster:
        cluster.shape(f"{rate}mbit")
        done = cluster.mpirun(ranks, Path(__file__).resolve(), "--worker", *map(str, arguments), timeout=600)
    if done.returncode:
        sys.exit(f"{hosts} hosts, {ranks} ranks, {arguments}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine_of(setting, links, work, step):
    """The Machine that a setting runs on, of what was probed: links of another rate, and a mini-batch of this one."""
    from parle_hpc.planning.machine import Machine, Work

    share, (seconds, _, moves) = work.pop("share"), step
    line = Work(**work)
    sizes = [share, 2 * share]
    memory = [line.at(size, line.memory) for size in sizes]
    probed = {**work, "samples": sizes, "seconds": [seconds, 2 * seconds], "memory": memory, "moves": moves, "noise": 0}
    between = {
        name: {**links[name], "bandwidth": links[name]["bandwidth"] * setting.rate / PROBED}
        for name in ("across", "between")
    }
    return Machine(
        name="hosts",
        measured=True,
        device="cpu",
        ranks_per_node=setting.n * setting.m // setting.hosts,
        memory=1e12,
        inside=links["inside"],
        **between,
        disk=1e9,
        copy=1e9,
        node_mtbf=1e9,
        restart=0,
        work={setting.recipe: probed},
    )


def predicted(setting, arguments, links, work, step):
    """(Seconds a round, those of the simulator, bytes at the peak) of a setting."""
    from parle_hpc.planning.costs import cost
    from parle_hpc.planning.shapes import shape_of
    from parle_hpc.planning.simulator import scenario_of, simulate
    from parle_hpc.settings import load

    settings = load(arguments)
    machine = machine_of(setting, links, {**work, "share": settings.data.batch_size // setting.m}, step)
    shape = shape_of(settings, setting.n, setting.m, machine.ranks_per_node)
    found = cost(settings, machine, machine.work[setting.recipe], shape)
    simulated = simulate(scenario_of(found, step[1])).seconds / 100
    return found.round.seconds, simulated, found.memory


def miss(guess, truth):
    """How far a prediction is from the truth, in percent of it."""
    return 100 * (guess / truth - 1)


def show(rows):
    """The medians of the misses, all of which have been printed."""
    for name, bound in (("seconds", 10), ("simulated", 15), ("memory", 5)):
        misses = [abs(row[name]) for row in rows]
        over = sum(each > bound for each in misses)
        print(f"{name}: median miss {np.median(misses):.1f} %, largest {max(misses):.1f} %, {over} over {bound} %")


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measured, of each setting (default: 3, at most 3)")
    parser.add_argument("--only", nargs="*", default=[], help="settings with one of these words in their line")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, rounds, replicas, *rest = arguments.worker
        worker(way, int(rounds), int(replicas), rest)
        return
    need_hosts()
    from parle_hpc.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        data = {name: str(prepare(name, out=Path(folder) / f"{name}.h5")) for name in ("digits", "topics")}
        paths = {name: ["--data.path", data["topics" if name == "gpt" else "digits"]] for name in RECIPES}
        measure(arguments, {name: [*RECIPES[name], *paths[name]] for name in RECIPES})


def measure(arguments, recipes):
    """Probe, then run all settings; recipes: {name: command line}."""
    links = start(2, 4, PROBED, "links", 0, 2, *recipes["lenet"])
    told = {name: f"{1e3 * link['latency']:.2f} ms, {link['bandwidth'] / 1e6:.3g} MB/s" for name, link in links.items()}
    print(f"probed at {PROBED} Mbit/s: {told}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    works, rows = {}, []
    print(
        "setting | hosts | n x m | Mbit/s | s a round: predicted, simulated, measured | miss, % | "
        "GB: predicted, measured"
    )
    for setting in SETTINGS:
        line = f"{setting} | {setting.hosts} | {setting.n} x {setting.m} | {setting.rate}"
        if arguments.only and not any(word in line for word in arguments.only):
            continue
        if setting.recipe not in works:
            works[setting.recipe] = start(2, 2, PROBED, "work", 0, 2, *recipes[setting.recipe])
        given = [*recipes[setting.recipe], *setting.more]
        found = start(setting.hosts, setting.n * setting.m, setting.rate, "rounds", arguments.rounds, setting.n, *given)
        guess, simulated, memory = predicted(setting, given, links, works[setting.recipe], found["step"])
        truth = float(np.median(found["seconds"]))
        row = {"seconds": miss(guess, truth), "simulated": miss(simulated, truth)}
        row["memory"] = miss(memory, found["peak"])
        rows.append({**row, "setting": line, "found": found, "predicted": [guess, simulated, memory]})
        print(
            f"{line} | {guess:.3g}, {simulated:.3g}, {truth:.3g} | {row['seconds']:+.1f}, {row['simulated']:+.1f} | "
            f"{memory / 1e9:.3f}, {found['peak'] / 1e9:.3f} ({row['memory']:+.1f} %)",
            flush=True,
        )
    show(rows)
    write({"links": links, "works": works, "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
