"""What a slow network costs: hosts as network namespaces with shaped links, one rank on each, all ways in one run.

    python benchmarks/network.py [--rates 25mbit ...] [--model lenet] [--repeat 24] [--ways 5] [--json FILE]

Needs root (tests/helpers/namespaces.py); elsewhere it says so and ends. Per mini-batch, medians over the repeats with
quartiles: local steps, which are the ceiling; Parle with its coupling hidden behind the mini-batches, and with the same
reduction waited for at once; SGD that averages gradients at every step, by Horovod and by torch's DDP (gloo). A repeat
is one round of 25 mini-batches of each way in turn, from an update that couples until nothing is in flight any more;
ratios are of two in the same repeat. SGD's ways, whose ratios are far from 1, take part in every fourth. Bytes are what
left both hosts in the round. Horovod spans the hosts in its own turn alone; else it is the replica's, a rank of its
own, as in a run of Parle, because its ranks ask each other every millisecond whether there is something to do. The last
case is shared memory: both ranks on one host.
"""

import argparse
import copy
import json
import os
import time

import numpy as np
from bench import command_line, quartiles, shown, write
from hosts import need_hosts, on_hosts

RATES = ("10mbit", "25mbit", "100mbit", "1gbit", "10gbit")
WAYS = ("local", "Parle, hidden", "Parle, blocking", "SGD, Horovod", "SGD, DDP")
RATIOS = (
    ("hidden / blocking", "Parle, hidden", "Parle, blocking"),
    ("Horovod SGD / hidden", "SGD, Horovod", "Parle, hidden"),
)
L = 25
SELDOM = 4


def worker(name, batch, repeat, ways):
    """One rank: print, on rank 0, {way: [[repeat, seconds a mini-batch, bytes of the round], ...]} as JSON."""
    import horovod.torch as hvd
    import torch
    import torch.distributed as dist
    from helpers.blocking import Blocking
    from helpers.namespaces import link_bytes
    from torch.nn.functional import cross_entropy

    from parle_hpc import Parle, Topology, models
    from parle_hpc.algorithms.sgd import SGD
    from parle_hpc.coupling import choice
    from parle_hpc.coupling.reference import MPIReference
    from parle_hpc.training.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()
    topology = Topology.split(replicas=2)
    both = copy.copy(topology)
    both.m = 2
    world, rank = topology.world, topology.world.Get_rank()
    address = world.bcast(os.popen("hostname -I").read().split()[0])
    store = f"tcp://{address}:{world.bcast(20000 + os.getpid() % 20000)}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world.Get_size())
    size = {"lenet": (1, 28), "allcnn": (3, 32)}[name]
    images = torch.rand(batch, size[0], size[1], size[1]).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def halves(way):
        """Of a mini-batch the forward and backward pass, and the update; and the wait for what is in flight."""
        torch.manual_seed(0)
        model = models.build(name, in_channels=size[0])
        params = list(model.parameters())
        if way.startswith("Parle"):
            choice.MPIReference = Blocking if "blocking" in way else MPIReference
            optimizer = Parle(params, lr=1e-3, L=L, batches_per_epoch=100, comm=world)
        else:
            optimizer = SGD(params, lr=1e-3)
        net = torch.nn.parallel.DistributedDataParallel(model) if "DDP" in way else model

        def compute():
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()

        def update():
            if "Horovod" in way:
                both.average_gradients(params)
            optimizer.step()

        for _ in range(L - 1):  # the next update couples
            compute()
            update()
        return compute, update, optimizer.finish

    bodies = {way: halves(way) for way in ways}
    found = {way: [] for way in ways}
    for i in range(repeat + 1):
        # there and back, so that what drifts slowly is the same for all
        for way in ways if i % 2 else reversed(ways):
            if way.startswith("SGD") and i and i % SELDOM != 1:
                continue
            compute, update, finish = bodies[way]
            if "Horovod" in way:
                hvd.shutdown()
                hvd.init(comm=world)
            world.Barrier()
            compute()
            started, before = time.perf_counter(), link_bytes()
            for _ in range(L):
                update()
                compute()
            finish()
            seconds, sent = time.perf_counter() - started, link_bytes() - before
            if "Horovod" in way:
                hvd.shutdown()
                hvd.init(comm=topology.replica)
            if i:
                found[way].append([i, max(world.allgather(seconds)) / L, sum(world.allgather(sent))])
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


def summary(found):
    """Of each way the quartiles of seconds, of the ratio to local steps in the same repeat, and the median bytes."""
    seconds = {way: {i: value for i, value, _ in values} for way, values in found.items()}

    def ratio(over, under):
        return quartiles([value / seconds[under][i] for i, value in seconds[over].items()])

    result = {}
    for way, values in found.items():
        result[way] = {
            "seconds": quartiles(list(seconds[way].values())),
            "to_local": ratio(way, "local"),
            "bytes": float(np.median([sent for *_, sent in values])),
        }
    return result | {name: ratio(over, under) for name, over, under in RATIOS if {over, under} <= set(found)}


def show(case, result):
    for way in (way for way in WAYS if way in result):
        r = result[way]
        seconds, to_local = shown(r["seconds"]), shown(r["to_local"], 3, 1)
        print(f"{case:14} {way:16} {seconds:>22}   {to_local:24} {r['bytes']:14,.0f}", flush=True)
    for name in (name for name, *_ in RATIOS if name in result):
        print(f"{case:14} {name} {shown(result[name], 3, 1)}", flush=True)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rates", nargs="*", default=RATES, help=f"of the links (default: {' '.join(RATES)})")
    parser.add_argument("--model", choices=("lenet", "allcnn"), default="lenet", help="network (default: lenet)")
    parser.add_argument("--batch", type=int, default=128, help="images in a mini-batch of a rank (default: 128)")
    parser.add_argument("--repeat", type=int, default=24, help="measured rounds of each way (default: 24)")
    parser.add_argument("--ways", type=int, default=5, help=f"the first so many of {'; '.join(WAYS)} (default: all)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    ways = WAYS[: arguments.ways]
    if arguments.worker:
        worker(arguments.model, arguments.batch, arguments.repeat, ways)
        return
    need_hosts()
    results = {"model": arguments.model, "batch": arguments.batch}
    print(f"{'link':14} {'way':16} {'ms a mini-batch':>22}   {'to local steps':24} {'bytes a round':>14}")
    cases = [(2, rate) for rate in arguments.rates] + [(1, "shared memory")]
    for count, case in cases:
        rate = case if count > 1 else None
        results[case] = summary(on_hosts(count, rate, arguments, "model", "batch", "repeat", "ways"))
        show(case, results[case])
    write(results, arguments.json)


if __name__ == "__main__":
    main()
