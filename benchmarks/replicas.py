"""What a coupling costs with many replicas on one machine, and four ranks as 1 x 4, 2 x 2 and 4 x 1.

    python benchmarks/replicas.py [--ranks 2 4 8 16 32] [--repeat 20] [--json FILE]

The coupling of LeNet's 132,220 parameters and of All-CNN's 1,369,738, without mini-batches to hide it behind: (8c),
and the mean of the replicas, started and waited for; the slowest rank's, medians with quartiles. Then mini-batches of
LeNet, 128 images a replica: forward, backward, gradients averaged inside the replica, step.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench import command_line, quartiles, shown, write
from helpers.mpi import COLD, mpirun

SIZES = {"LeNet": 132_220, "All-CNN": 1_369_738}


def couplings(topology, size, repeat):
    """Seconds of each coupling, of the slowest rank."""
    import torch

    from parle_hpc import Parle

    weight = torch.nn.Parameter(torch.randn(size))
    weight.grad = torch.zeros_like(weight)
    optimizer = Parle([weight], lr=1e-3, L=1, batches_per_epoch=100, comm=topology.cross, replica=topology.replica)
    seconds = []
    for _ in range(repeat + 3):
        optimizer._mean.collect()
        topology.world.Barrier()
        started = time.perf_counter()
        optimizer._couple()
        optimizer._mean.collect()
        seconds.append(max(topology.world.allgather(time.perf_counter() - started)))
    return seconds[3:]


def minibatches(topology, repeat):
    """Seconds of each mini-batch of 128 images a replica, of the slowest rank."""
    import torch
    from torch.nn.functional import cross_entropy

    from parle_hpc import Parle, models

    model = models.build("lenet")
    params = list(model.parameters())
    optimizer = Parle(params, lr=1e-3, batches_per_epoch=100, comm=topology.cross, replica=topology.replica)
    images, labels = torch.rand(128 // topology.m, 1, 28, 28), torch.randint(0, 10, (128 // topology.m,))
    seconds = []
    for _ in range(repeat + 5):
        topology.world.Barrier()
        started = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        topology.average_gradients(params)
        optimizer.step()
        seconds.append(max(topology.world.allgather(time.perf_counter() - started)))
    return seconds[5:]


def worker(replicas, repeat, what):
    import torch

    from parle_hpc import Topology
    from parle_hpc.training.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()
    topology = Topology.split(replicas=replicas)
    if what == "couplings":
        found = {name: quartiles(couplings(topology, size, repeat)) for name, size in SIZES.items()}
    else:
        found = quartiles(minibatches(topology, repeat))
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def call(ranks, *arguments):
    # mpi.mpirun takes a .py name for one of the tests' programs: an absolute path stays what it is
    result = mpirun(ranks, str(Path(__file__).resolve()), "--worker", *arguments, python=COLD, timeout=1200)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = command_line(__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4, 8, 16, 32], help="n (default: 2 to 32)")
    parser.add_argument("--repeat", type=int, default=20, help="measurements of each (default: 20)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        replicas, repeat, what = arguments.worker
        worker(int(replicas), int(repeat), what)
        return
    results = {"cores": len(os.sched_getaffinity(0)), "couplings": {}, "mini-batches": {}}
    print(f"{results['cores']} cores; ms, median [quartiles]")
    for n in arguments.ranks:
        results["couplings"][n] = found = call(n, n, arguments.repeat, "couplings")
        took = ", ".join(f"{name} {shown(q, 2)}" for name, q in found.items())
        print(f"coupling of {n:2} replicas: {took}", flush=True)
    for n in (1, 2, 4):
        took = results["mini-batches"][f"{n} x {4 // n}"] = call(4, n, arguments.repeat, "minibatches")
        print(f"mini-batch, {n} x {4 // n}: {shown(took)}, {n * 128 / took[1]:,.0f} images per second", flush=True)
    write(results, arguments.json)


if __name__ == "__main__":
    main()
