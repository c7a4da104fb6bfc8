"""The gradients' way inside a replica: one buffer after the backward pass, or fixed buckets sent during it.

    python benchmarks/gradients.py [--model allcnn] [--batch 32] [--rates 1gbit] [--repeat 20] [--json FILE]

Two ranks of one replica, first on one host (shared memory), then, as root, on two hosts whose links have the given
rates. Mini-batches of each way in turn: without any averaging; as parle_hpc does it, one flat buffer once all gradients
are there; in fixed buckets of so many MB, each sent by hooks as soon as its last gradient is there, in the order of the
backward pass; and Horovod's own DistributedOptimizer, whose fusion depends on timing, so that with 3 ranks or more two
runs differ. Medians with quartiles, and ratios to the flat buffer of the same repeat.
"""

import argparse
import json
import time

import numpy as np
from bench import command_line, quartiles, shown, write
from hosts import need_hosts, on_hosts

BUCKETS = (1, 4)  # MB
WAYS = ("local", "flat", *(f"buckets of {size} MB" for size in BUCKETS), "DistributedOptimizer")


class Buckets:
    """Gradients averaged in buckets of `size` MB, each on its way while the backward pass goes on."""

    def __init__(self, params, size, hvd):
        self._hvd, self._buckets, self._sent = hvd, [[]], []
        for p in reversed(params):
            if sum(q.nbytes for q in self._buckets[-1]) > size * 1e6:
                self._buckets.append([])
            self._buckets[-1].append(p)
        for i, bucket in enumerate(self._buckets):
            for p in bucket:
                p.register_post_accumulate_grad_hook(self._hook(i, size))
        self._missing = [len(bucket) for bucket in self._buckets]

    def _hook(self, i, size):
        import torch

        def arrived(_):
            self._missing[i] -= 1
            if self._missing[i] == 0:
                flat = torch.cat([p.grad.reshape(-1) for p in self._buckets[i]])
                # the ranks know a tensor by its name
                handle = self._hvd.allreduce_async_(flat, op=self._hvd.Average, name=f"bucket {i} of {size} MB")
                self._sent.append((i, flat, handle))

        return arrived

    def finish(self):
        """Wait for what is under way and put it where the gradients are."""
        import torch

        for i, flat, handle in self._sent:
            self._hvd.synchronize(handle)
            bucket = self._buckets[i]
            pieces = torch.split(flat, [p.numel() for p in bucket])
            torch._foreach_copy_(
                [p.grad for p in bucket], [q.view(p.shape) for q, p in zip(pieces, bucket, strict=True)]
            )
            self._missing[i] = len(bucket)
        self._sent = []


def worker(name, batch, repeat):
    """One rank: print, on rank 0, {way: [seconds, ...]} as JSON."""
    import horovod.torch as hvd
    import torch
    from torch.nn.functional import cross_entropy

    from parle_hpc import Topology, models
    from parle_hpc.training.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()
    topology = Topology.split(replicas=1)
    channels, size = {"lenet": (1, 28), "allcnn": (3, 32)}[name]
    images = torch.rand(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def steps(way):
        torch.manual_seed(0)
        model = models.build(name, in_channels=channels)
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9, nesterov=True, foreach=True)
        average = lambda: None  # noqa: E731
        if way == "flat":
            average = lambda: topology.average_gradients(params)  # noqa: E731
        elif way.startswith("buckets"):
            average = Buckets(params, float(way.split()[2]), hvd).finish
        elif way == "DistributedOptimizer":
            optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

        def step():
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            average()
            optimizer.step()

        return step

    bodies, found = {way: steps(way) for way in WAYS}, {way: [] for way in WAYS}
    for i in range(repeat + 3):
        for way, step in bodies.items():
            topology.world.Barrier()
            started = time.perf_counter()
            step()
            seconds = max(topology.world.allgather(time.perf_counter() - started))
            if i >= 3:
                found[way].append(seconds)
    if topology.world.Get_rank() == 0:
        print(json.dumps(found))


def summary(found):
    flat = np.array(found["flat"])
    return {way: {"seconds": quartiles(s), "to_flat": quartiles(np.array(s) / flat)} for way, s in found.items()}


def main():
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=("lenet", "allcnn"), default="allcnn", help="network (default: allcnn)")
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
    print(f"{'link':14} {'way':22} {'ms a mini-batch':>22}   to flat")
    for count, case in [(1, "shared memory"), *((2, rate) for rate in arguments.rates)]:
        rate = case if count > 1 else None
        results[case] = summary(on_hosts(count, rate, arguments, "model", "batch", "repeat"))
        for way, r in results[case].items():
            print(f"{case:14} {way:22} {shown(r['seconds']):>22}   {shown(r['to_flat'], 3, 1)}", flush=True)
    write(results, arguments.json)


if __name__ == "__main__":
    main()
