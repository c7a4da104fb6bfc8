"""The mean of gradients in buckets that are sent during the backward pass, in ways that differ in timing alone.

buckets.py REPLICAS     prints JSON: {way: for each rank [digest of its gradients, largest difference to one buffer]},
                        and what is refused, and why
"""

import hashlib
import json
import math
import sys
import time

import torch

from parle_hpc import Topology

torch.set_num_threads(1)
topology = Topology.split(replicas=int(sys.argv[1]))
mean, last = topology._gradient_mean, topology.place == topology.m - 1
params = [torch.nn.Parameter(torch.zeros(size)) for size in (3000, 7, 9000, 20_000, 1, 4000, 6000, 15_000, 2000, 8000)]
torch.manual_seed(1 + topology.world.Get_rank())
mine, pause = [torch.randn_like(p) for p in params], 0.0
for p in params:
    p.register_hook(lambda gradient: time.sleep(pause))


def backward(without=(), share=1.0):
    """A backward pass from the last parameter to the first, which gives them a share of `mine`."""
    used = [(p, c) for i, (p, c) in enumerate(zip(params, mine, strict=True)) if i not in without]
    sum((p * (share * c)).sum() for p, c in used).backward()


def followed(**options):
    topology.follow_backward(params)
    backward(**options)


def slow(here):
    global pause
    pause = 0.01 * here
    followed()
    pause = 0.0


def set_by_hand():
    topology.follow_backward(params)
    for p, c in zip(params, mine, strict=True):
        p.grad = c.clone()


def in_two_parts():
    backward(share=0.5)
    followed(share=0.5)


def some():
    """One gradient is nowhere, one on the first rank alone, and on the last rank there is none."""
    if last:
        return
    followed(without=(2, 8) if topology.place else (8,))


def average(way, least=40_000):
    """The gradients after a mini-batch; infinite `least`: in one buffer."""
    mean.least, mean._buckets = least, mean._buckets if math.isfinite(least) else None
    for p in params:
        p.grad = None
    way()
    topology.average_gradients(params)
    return [p.grad for p in params]


def difference(one, other):
    assert [g is None for g in one] == [g is None for g in other]
    return max((g - h).abs().max().item() for g, h in zip(one, other, strict=True) if g is not None)


def refused(*steps):
    try:
        for step in steps:
            step()
    except RuntimeError as error:
        return str(error)


found, one_buffer = {}, average(followed, math.inf)
ways = [followed, lambda: slow(not topology.place), lambda: slow(last), set_by_hand, in_two_parts, backward]
for way in ways * 2:
    gradients = average(way)
    digest = hashlib.sha256(b"".join(g.numpy().tobytes() for g in gradients)).hexdigest()
    found.setdefault(digest, difference(gradients, one_buffer))
assert len(mean._buckets.slices) == 5
missing = difference(average(some), average(some, math.inf))
average(followed)
clip = lambda: torch.nn.utils.clip_grad_norm_(params, 1.0)  # noqa: E731
answers = [
    refused(lambda: average(lambda: [followed(), clip()])),
    refused(lambda: average(lambda: [followed(), backward()])),
    refused(followed, lambda: topology.average_gradients(params[1:])),
]
everyone = topology.world.gather([found, missing, answers])
if topology.world.Get_rank() == 0:
    print(json.dumps(everyone))
