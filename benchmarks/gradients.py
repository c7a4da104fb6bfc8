"""The gradients' way inside a replica: one buffer after the backward pass, or buckets sent off during it.

    python benchmarks/gradients.py [--model allcnn] [--batch 32] [--rates 1gbit] [--repeat 20] [--json FILE]

Two ranks of one replica, first on one host (shared memory), then, as root, on two hosts whose links have the given
rates. Mini-batches of each way in turn: without any averaging; Topology.average_gradients alone, one buffer; and with
Topology.follow_backward before the backward pass, in buckets of so many MB. Medians with quartiles, and ratios to the
one buffer of the same repeat.
"""

import argparse
import copy
import json
import math
import time

import numpy as np
from bench import command_line, quartiles, shown, write
from hosts import need_hosts, on_hosts

BUCKETS = (0.25, 1, 4)  # MB
WAYS = {"local": None, "one buffer": math.inf, **{f"buckets of {size:g} MB": 1e6 * size for size in BUCKETS}}
MODELS = {"lenet": (1, 28, {}), "allcnn": (3, 32, {}), "wrn": (3, 32, {"depth": 10, "widen": 4})}


def worker(name, batch, repeat):
    """One rank: print, on rank 0, {way: [seconds, ...]} as JSON."""
    import torch
    from torch.nn.functional import cross_entropy

    from parle_hpc import Topology, models
    from parle_hpc.algorithms.sgd import SGD
    from parle_hpc.training.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()
    topology = Topology.split(replicas=1)
    channels, size, options = MODELS[name]
    images = torch.rand(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def steps(least):
        torch.manual_seed(0)
        model = models.build(name, in_channels=channels, **options)
        params = list(model.parameters())
        optimizer = SGD(params, lr=1e-3)
        # as the topology's own is where a replica spans hosts, or does not
        mean = copy.copy(topology._gradient_mean)
        mean.least = least

        def step():
            optimizer.zero_grad()
            if least is not None:
                mean.follow(params)
            cross_entropy(model(images), labels).backward()
            if least is not None:
                mean(params)
            optimizer.step()

        return step

    bodies, found = {way: steps(least) for way, least in WAYS.items()}, {way: [] for way in WAYS}
    for i in range(repeat + 3):
        # there and back, so that what drifts slowly is the same for all
        for way in WAYS if i % 2 else reversed(WAYS):
            topology.world.Barrier()
            started = time.perf_counter()
            bodies[way]()
            seconds = max(topology.world.allgather(time.perf_counter() - started))
            if i >= 3:
                found[way].append(seconds)
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def summary(found):
    whole = np.array(found["one buffer"])
    return {way: {"seconds": quartiles(s), "to_one_buffer": quartiles(np.array(s) / whole)} for way, s in found.items()}


def main():
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=MODELS, default="allcnn", help="network (default: allcnn)")
    parser.add_argument("--batch", type=int, default=32, help="images in a mini-batch of a rank (default: 32)")
    parser.add_argument("--rates", nargs="*", default=["1gbit"], help="of the links (default: 1gbit)")
    parser.add_argument("--repeat", type=int, default=20, help="measured mini-batches of each way (default: 20)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.model, arguments.batch, arguments.repeat)
        return
    need_hosts()
    results = {"model": arguments.model, "batch": arguments.batch}
    print(f"{'link':14} {'way':22} {'ms a mini-batch':>22}   to one buffer")
    for count, case in [(1, "shared memory"), *((2, rate) for rate in arguments.rates)]:
        rate = case if count > 1 else None
        results[case] = summary(on_hosts(count, rate, arguments, "model", "batch", "repeat"))
        for way, r in results[case].items():
            print(f"{case:14} {way:22} {shown(r['seconds']):>22}   {shown(r['to_one_buffer'], 3, 1)}", flush=True)
    write(results, arguments.json)


if __name__ == "__main__":
    main()
