"""Does the mean of the replicas really travel during the mini-batches? What is left to wait for at the coupling.

    python benchmarks/progress.py [--rates 1gbit 10gbit] [--size 36479194] [--step 0.1] [--repeat 5] [--json FILE]

Two hosts as network namespaces (root), one rank on each, a flat vector of WRN-28-10's size, rounds of 25 mini-batches
that only compute for so many seconds. A thread looks at the reduction, as it is built; or the training loop alone does,
once a mini-batch; or nobody. Per round: seconds left to wait at its end, and the round to one without any reduction.
"""

import argparse
import json
import time
from functools import partial

from bench import command_line, quartiles, shown, write
from hosts import by_the_slowest, need_hosts, on_hosts

WAYS = ("nothing to send", "a thread", "once a mini-batch", "nobody")
L = 25


def worker(size, step, repeat):
    """One rank: print, on rank 0, {way: [[seconds of the round, seconds waited], ...]} as JSON."""
    import torch

    from parle_hpc import Topology
    from parle_hpc.coupling import reference

    torch.set_num_threads(1)
    topology = Topology.split(replicas=2)
    xa, matrix = torch.randn(size), torch.randn(200, 200)
    mean = reference.MPIReference(topology.cross, xa)
    travelling = reference.Travelling

    class Lying(travelling):
        def _move(self):
            pass

    def compute():
        end = time.perf_counter() + step
        while time.perf_counter() < end:
            matrix @ matrix

    def round(way):
        reference.Travelling = travelling if way == "a thread" else Lying
        started, waited = time.perf_counter(), mean.wait_seconds
        if way != "nothing to send":
            mean.start(xa)
        for _ in range(L):
            compute()
            if way != "nobody":
                mean.poll()
        mean.collect()
        return [time.perf_counter() - started, mean.wait_seconds - waited]

    found = by_the_slowest(topology.world, {way: partial(round, way) for way in WAYS}, repeat)
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rates", nargs="*", default=["1gbit", "10gbit"], help="of the links (default: 1gbit 10gbit)")
    parser.add_argument("--size", type=int, default=36_479_194, help="floats (default: WRN-28-10's)")
    parser.add_argument("--step", type=float, default=0.1, help="seconds of a mini-batch (default: 0.1)")
    parser.add_argument("--repeat", type=int, default=5, help="measured rounds of each way (default: 5)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.size, arguments.step, arguments.repeat)
        return
    need_hosts()
    results = {"size": arguments.size, "step": arguments.step}
    for rate in arguments.rates:
        found = on_hosts(2, rate, arguments, "size", "step", "repeat")
        alone = [seconds for seconds, _ in found["nothing to send"]]
        results[rate] = {}
        for way, rounds in found.items():
            waited = quartiles([w for _, w in rounds])
            ratio = quartiles([seconds / a for (seconds, _), a in zip(rounds, alone, strict=True)])
            results[rate][way] = {"waited": waited, "to_nothing": ratio}
            print(f"{rate:8} {way:18} waits {shown(waited, 3, 1)} s   round {shown(ratio, 3, 1)}", flush=True)
    write(results, arguments.json)


if __name__ == "__main__":
    main()
