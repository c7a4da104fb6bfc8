"""How fast is the mean of the replicas: ours beside MPI's own all-reduce in place, in turn, on shaped links.

    python benchmarks/mean.py [--rates 50mbit] [--hosts 2 3 4] [--size 500000] [--repeat 5] [--json FILE]

Hosts as network namespaces (root), one rank on each. Seconds, medians, and in units of S/B, S the vector's size and B
the links' rate; the least that an all-reduce can take is 2 (n - 1)/n.
"""

import argparse
import json
import os
import time

import numpy as np
from bench import command_line, quartiles, shown, write
from hosts import by_the_slowest, need_hosts, on_hosts

RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def worker(size, repeat):
    """One rank: print, on rank 0, {way: [[seconds of a mean], ...]} as JSON."""
    import torch

    from parle_hpc import Topology
    from parle_hpc.coupling.reference import MPIReference

    torch.set_num_threads(1)
    topology = Topology.split(replicas=int(os.environ["OMPI_COMM_WORLD_SIZE"]))
    xa = torch.randn(size)
    mean, host = MPIReference(topology.cross, xa), xa.clone().numpy()

    def ours():
        started = time.perf_counter()
        mean.start(xa)
        mean.collect()
        return [time.perf_counter() - started]

    def plain():
        started = time.perf_counter()
        request = topology.cross.Iallreduce(None, host)
        while not request.Test():
            time.sleep(1e-3)
        return [time.perf_counter() - started]

    found = by_the_slowest(topology.world, {"ours": ours, "Iallreduce": plain}, repeat)
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rates", nargs="*", default=["50mbit"], help="of the links (default: 50mbit)")
    parser.add_argument("--hosts", type=int, nargs="*", default=[2, 3, 4], help="default: 2 3 4")
    parser.add_argument("--size", type=int, default=500_000, help="floats (default: 500,000)")
    parser.add_argument("--repeat", type=int, default=5, help="measured means of each way (default: 5)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.size, given.repeat)
        return
    need_hosts()
    results = {"size": given.size}
    for rate in given.rates:
        unit = 32 * given.size / (float(rate[:-4]) * RATES[rate[-4:]])
        for n in given.hosts:
            found = on_hosts(n, rate, given, "size", "repeat", ranks=n)
            times_of = {way: quartiles(np.ravel(seconds)) for way, seconds in found.items()}
            results[f"{rate}, {n} hosts"] = times_of
            for way, times in times_of.items():
                print(f"{rate} n = {n} {way:10} {shown(times, 3, 1)} s, {times[1] / unit:.2f} S/B", flush=True)
    write(results, given.json)


if __name__ == "__main__":
    main()
