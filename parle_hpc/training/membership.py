"""A run as a member of a mailbox: whether it belongs there, and where it begins when the others have begun."""

import math
import statistics
from contextlib import suppress
from functools import partial

import numpy as np
import torch

from ..checkpoints import resume
from ..cluster.agreement import by_first, from_first, on_first
from ..cluster.hold import living
from ..coupling import mailbox
from ..coupling.posting import Membership
from ..coupling.reference import tree_sum
from ..equations import eq_8d
from ..errors import BadInput
from ..settings import text_of

# of the data, what all members must have alike; the network and the task are alike as a whole
DATA = ("name", "fraction", "samples", "preprocessing", "augment")


def open_mailbox(settings, topology, session, samples, model):
    """The Membership that the settings ask for, or None. Collective over all ranks.

    samples: of the training and the validation part. model: the network. Raises BadInput where the folder is of another
    experiment, or another process is this member already.
    """
    c = settings.coupling
    if c.via != "mailbox":
        return None
    facts = common(settings, samples, model)
    who = by_first(topology, mailbox.agree, c.folder, facts, text_of(settings))
    mine = partial(mailbox.Member, c.folder, c.member, c.weight, **about(settings, topology))
    member = on_first(topology, mine)
    session.news.append(f"member {c.member} of the mailbox {c.folder}, which {who} may write")
    ages = {"max_age": c.max_age, "max_seconds": c.max_seconds}
    saved = session.rounds_saved
    return Membership(member, topology.replica, wait_for=c.wait_for, weight=c.weight, saved=saved, **ages)


def replica_number(settings, topology):
    """(Which replica this one is, of how many), as far as data are divided among them."""
    c = settings.coupling
    if c.via != "mailbox":
        return topology.replica_index, topology.n
    # nobody knows how many members there will be: together those that a part of the data needs see all of it
    return c.member, c.wait_for or math.ceil(1 / settings.data.fraction)


def common(settings, samples, model):
    """{what a message calls it: value} of what all members must have alike."""
    d, t = settings.data, settings.task
    shapes = [list(p.shape) for p in model.parameters()]
    return {
        "the task": t.name or (t.file and "of a file") or "images",
        "the task's file, by its checksum,": t.checksum,
        **{f"data.{key}": getattr(d, key) for key in DATA},
        "the data's checksum": d.checksum,
        "the numbers of samples": list(samples),
        **{f"model.{key}": value for key, value in settings.model.model_dump(mode="json").items()},
        "run.seed": settings.run.seed,
        "the number of weights": sum(p.numel() for p in model.parameters()),
        "the shapes of the parameters": mailbox.digest(np.array(str(shapes).encode())),
        "the types of the parameters": sorted({str(p.dtype) for p in model.parameters()}),
    }


def about(settings, topology):
    """What a heartbeat says of its member: of that members may differ in."""
    a = settings.algorithm
    return {"algorithm": a.name, "L": a.L, "ranks": topology.m, "batch_size": settings.data.batch_size}


def begin_beside_others(membership, optimizer, scheduler, tally, session, topology):
    """Begin at the mean of the members that live, at rest, and as far on as half of them are; if there are any.

    Collective over all ranks. The first members begin where they would have begun without the others.
    """
    found = None
    if membership.member is not None:
        like = optimizer.saved()["x"][0].cpu().numpy()
        found = start_of(membership.member, like)
    round, x = from_first(topology.world, found) or (0, None)
    if round == 0:
        return
    state = {name: np.zeros_like(x) if name.startswith("v") else x for name in optimizer.saved() if resume.flat(name)}
    step = round * optimizer.round_length
    scheduler.begin_at(step)
    optimizer.restore(state, step, resume.groups_of(optimizer))
    tally.step = step
    session.first_round = round
    session.news.append(f"begins beside the others, after {round} of their rounds")


def start_of(member, like):
    """(Rounds, x^a) to begin with beside the members that live, the latter of the shape and type of `like`, or None."""
    others = [number for number in mailbox.members(member.folder) if number != member.number]
    found, x = mean_of(member.folder, [number for number in others if lives(member.folder, number)], like)
    return None if x is None else (statistics.median_low(found.values()), x)


def lives(folder, number):
    """Whether a process is this member now."""
    return living(mailbox.member_folder(folder, number)) is not None


def mean_of(folder, numbers, like):
    """({member: its rounds}, the mean of their newest x^a), of those of the members `numbers` that have one.

    like: an array of the shape and type of x^a. The mean is None where none has one.
    """
    rounds, values, total = {}, [], 0.0
    for number in numbers:
        beat = mailbox.heartbeat(folder, number)
        for at in reversed(beat.rounds if beat else []):
            with suppress(mailbox.Unreadable):
                values.append(beat.weight * torch.from_numpy(mailbox.read(folder, number, at, like)))
                rounds[number], total = at, total + beat.weight
                break
    if not values:
        return {}, None
    x = tree_sum(values)
    eq_8d([x], total)
    return rounds, x.numpy()


def reference_of(folder, like):
    """`mean_of` the members that live or have done their rounds; where there are none, of all. Raises BadInput."""
    there = mailbox.members(folder)
    count = [n for n in there if getattr(mailbox.heartbeat(folder, n), "done", False) or lives(folder, n)]
    rounds, x = mean_of(folder, count or there, like)
    if x is None:
        raise BadInput(f"{folder}: no member has left an x^a of this network there")
    return rounds, x
