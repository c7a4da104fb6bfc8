"""A user's script in which one thing is wrong, or looks so: python -m programs.misuse CASE REPLICAS [buckets] [raises].

With "buckets" gradients travel as between nodes, those of v as soon as they are there.
Started without rank.py: what ends the ranks is the package. At the end rank 0 prints what all ranks hold as JSON, or
with "raises", for what all of them raise, what it is on each.
"""

import json
import sys
import time

import torch

from parle_hpc import Parle, Topology, batchnorm_of_reference
from parle_hpc.cluster import waiting

L, STEPS, at = 4, 10, 1
case, replicas, *ways = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
if case == "hvd.init before split":
    import horovod.torch as hvd

    hvd.init()
torch.set_num_threads(1)
t = Topology.split(replicas=replicas)
if "buckets" in ways:
    t._gradient_mean.least = 8
r, last = t.world.Get_rank(), t.n * t.m - 1
alone = r == last  # the rank on which something is different
torch.manual_seed(r if case == "other weights at the start" else 0)
w, v = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(4))
both = [w, v]


def make(params=both, **options):
    settings = {"lr": 0.1, "L": L, "batches_per_epoch": 5, "comm": t.cross, "replica": t.replica}
    return Parle(params, **{**settings, **options})


def backward(k):
    for p in both:
        p.grad = None
    t.follow_backward(both)
    sum((p * (0.1 * (k + 1) * (t.replica_index + 1))).sum() for p in both).backward()


def validate(o):
    with o.at_reference():
        return torch.cat([w.detach().flatten(), v.detach()]).tolist()


def train(o, steps=STEPS, every=5):
    for k in range(steps):
        backward(k)
        t.average_gradients(both)
        o.step()
        if (k + 1) % every == 0:
            validate(o)


def tell(o, **more):
    """What each rank holds, printed by rank 0: the reference, x^a and the live weights of each, and steps."""
    mine = {"x": o.x.tolist(), "y": torch.cat([w.detach().flatten(), v.detach()]).tolist(), "steps": o.steps, **more}
    mine["reference"] = validate(o)
    everyone = t.world.gather(mine)
    if r == 0:
        print(json.dumps(everyone), flush=True)


def one_step_fewer():
    o = make()
    for epoch in range(3):
        train(o, STEPS - (alone and epoch == 1))
        validate(o)
    tell(o)


def one_step_more():
    o = make()
    train(o, STEPS + alone)
    tell(o)


def one_step_more_in_mid_round():
    o = make()
    train(o, 1 + alone)
    validate(o)
    train(o)
    tell(o)


def one_step_more_before_a_validation():
    """In the first round, so that no mean has told of it; the validation would print a number that looks right."""
    o = make()
    train(o, 6 + alone, every=100)
    model = torch.nn.Module()
    model.w, model.v = w, v
    with o.at_reference(), batchnorm_of_reference(model, [], t):
        print("validated", flush=True)


def other_L():
    o = make(L=L + alone)
    train(o)
    tell(o)


def other_network():
    global both
    if alone:
        both = [w, v[:3].detach().requires_grad_()]
    o = make(both)
    train(o)
    tell(o)


def other_shape():
    global both
    if alone:
        both = [w.detach().t().contiguous().requires_grad_(), v]
    o = make(both)
    train(o)
    tell(o)


def other_algorithm():
    o = make(payload="bfloat16" if alone else "full")
    train(o)
    tell(o)


def other_reference():
    o = make(reference="average" if alone else "current")
    train(o)
    tell(o)


def as_it_should_be():
    o = make()
    train(o)
    tell(o)


other_weights_at_the_start = as_it_should_be


def world_for_cross():
    train(make(comm=t.world))


def replica_for_cross():
    train(make(comm=t.replica, replica=None))


def world_for_cross_without_replica():
    o = make(comm=t.world, replica=None)
    train(o)
    tell(o)


def alone_at_the_reference():
    o = make()
    train(o, 6)
    if alone:
        validate(o)
    train(o)
    tell(o)


def alone_at_the_end():
    o = make()
    train(o)
    if alone:
        tell(o)


def loop(*left_out, everywhere=False):
    """A training loop in which some of its calls are left out of one mini-batch of one rank, or of all of all."""
    o = make()
    for k in range(STEPS):
        missing = left_out if everywhere or (alone and k == at) else ()
        o.zero_grad()
        if "backward" not in missing:
            backward(k)
        if "average" not in missing:
            t.average_gradients(both)
        if "step" not in missing:
            o.step()
    tell(o)


def skipped_average():
    loop("average")


def skipped_step():
    loop("step")


def skipped_batch():
    loop("backward", "average", "step")


def skipped_backward_and_average():
    loop("backward", "average")


def skipped_backward():
    loop("backward")


def followed_by_others():
    if not alone:
        t.follow_backward(both)
    t.average_gradients(both)


def averaged_by_others():
    """Gradients that the ranks of a replica have averaged in another way, or that are the same."""
    loop("average", everywhere=True)


def never_averaged():
    o = make()
    for k in range(STEPS):
        for p in both:
            p.grad = torch.full_like(p, 0.1 * (k + r))
        o.step()
    tell(o)


def other_branches():
    w.grad, v.grad = (torch.ones_like(w), None) if t.place == 0 else (None, torch.full_like(v, 2.0))
    params = [w, v, torch.nn.Parameter(torch.zeros(2))]
    t.follow_backward(params)
    t.average_gradients(params)
    tell(make(), gradients=[w.grad.unique().tolist(), v.grad.unique().tolist(), params[2].grad])


def bfloat16():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, 1.0 + t.place)
    t.average_gradients([p])
    tell(make(), gradients=p.grad.tolist(), type=str(p.grad.dtype))


def sparse():
    e = torch.nn.Embedding(4, 2, sparse=True)
    e(torch.tensor([1])).sum().backward()
    t.average_gradients(e.parameters())


def used_up():
    params = filter(lambda p: p.requires_grad, both)
    o = make(params)
    backward(0)
    t.average_gradients(params)
    o.step()


def fails():
    o = make()
    train(o, 3)
    if alone:
        raise KeyError("only here")
    train(o)


def leaves():
    o = make()
    train(o, 3)
    if alone:
        sys.exit(1)
    train(o)


def bad_input():
    o = make()
    train(o, 2)
    t.device("cuda")


def broadcasts_alone():
    o = make()
    train(o, 2)
    if alone:
        t.broadcast(both)
    train(o)
    tell(o)


def broadcasts_others():
    t.broadcast(both if alone else [w])


def horovods_tools():
    import horovod.torch as hvd

    o = make()
    backward(0)
    before = [p.detach().clone() for p in both]
    hvd.broadcast_optimizer_state(o, 0)
    assert o.steps == 0
    assert all(torch.equal(p, was) for p, was in zip(both, before, strict=True))
    train(o)
    hvd.broadcast_optimizer_state(o, 0)
    tell(o)


def wrapped():
    import horovod.torch as hvd

    hvd.DistributedOptimizer(make(), named_parameters=[("w", w), ("v", v)])


def state_of_rank_0():
    """State that one rank saves and all ranks of its replica load."""
    o = make()
    train(o, 6)
    state = t.replica.bcast(o.state_dict())
    other = make()
    other.load_state_dict(state)
    assert all(torch.equal(getattr(other, name), getattr(o, name)) for name in ("x", "z", "v_y", "v_x"))
    backward(0)
    other.step()
    tell(other)


def masked():
    """Weights that are set to zero after each step, on all ranks."""
    o = make()
    for k in range(STEPS):
        backward(k)
        t.average_gradients(both)
        o.step()
        with torch.no_grad():
            w[:2].zero_()
    tell(o)


def loaded():
    """Weights that all ranks load in mid-round."""
    o = make()
    train(o, L + 2)
    for p in both:
        p.data.fill_(5.0)
    validated = validate(o)
    for _ in range(L):
        o.zero_grad()
        o.step()
    tell(o, validated=validated)


def state_of_another_replica():
    o = make()
    train(o, 6)
    make().load_state_dict(t.world.bcast(o.state_dict()))


def slow_is_not_dead():
    o = make()
    train(o, 3)
    if alone:
        time.sleep(9)
    train(o)
    tell(o)


def raises(function):
    """Print what each rank raises, when all have."""
    told = None
    try:
        function()
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    everyone = t.world.gather(told)
    # a later case must not know how often this one's ranks came to what
    waiting._calls.clear()
    if r == 0:
        print(json.dumps(everyone), flush=True)


function = globals()[case.replace(" ", "_").replace(".", "_")]
raises(function) if "raises" in ways else function()
