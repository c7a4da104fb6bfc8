"""What a run says of itself at its start and at its end."""

from pathlib import Path

import torch

from ..tasks.images import Images

PAPERS_COUPLING = 0.52  # section 4.1: time of (8c) and (8d) over that of the mini-batches, WRN-28-10, in percent


def headline(settings, topology, task, samples, params, rounds, round_length, device):
    """What is about to run; samples: their number in the two parts."""
    s, t = settings, topology
    network, data, nouns = s.task.name, f"on {s.data.name}", "samples"
    if s.task.file:
        network, data = type(task).__name__, f"of {Path(s.task.file).name}"
    elif isinstance(task, Images):
        network, nouns = s.model.name, "images"
    size, average = sum(p.numel() for p in params), s.algorithm.average
    kept = "" if average == "none" else f", weights averaged by {average}"
    return (
        f"{s.algorithm.name}{kept}: {count(t.n, 'replica')} x {count(t.m, 'rank')}, {network} ({size:,} parameters) "
        f"{data} ({samples[0]:,} + {samples[1]:,} {nouns}), "
        f"{count(rounds, 'round')} of {round_length} mini-batches of {s.data.batch_size}, "
        f"{device.type} in {s.run.precision}, {count(torch.get_num_threads(), 'thread')} a rank"
    )


def own_headline(topology, optimizer, params, folder):
    """What is about to run in a loop of one's own."""
    t, size = topology, sum(p.numel() for p in params)
    return (
        f"{type(optimizer).__name__}: {count(t.n, 'replica')} x {count(t.m, 'rank')}, {size:,} parameters, rounds of "
        f"{optimizer.round_length} mini-batches; writes into {folder}"
    )


def shown(score, units):
    """A Score in words, its scores and then the loss; units: of scores, by name."""
    values = [f"{name} {measured([value], units.get(name))}" for name, value in score.scores.items()]
    return ", ".join([*values, f"loss {score.loss:.4g}"])


def measured(values, unit):
    """Scores of one kind as text, and their unit once."""
    told = ", ".join(f"{value:.2f}" if unit else f"{value:.4g}" for value in values)
    return f"{told} {unit}" if unit else told


def summarise(metrics, outcome, task, tally, rounds, B, folder):
    """The end: the Outcome of the last validation, speed, and what the coupling took.

    B: mini-batches in a pass. A member of a mailbox that comes when all rounds are done has trained nothing.
    """
    units = task.units
    # the paper's is a network for images
    papers = f" (Parle with WRN-28-10 in the paper: {PAPERS_COUPLING} %)" if isinstance(task, Images) else ""
    name, value = outcome.test.first
    train, unit = outcome.train.scores[name], units.get(name)
    coupling, waited, sent = (tally.coupling[name] for name in COUNTERS)
    compute = tally.training_seconds - coupling
    best = {f"val_{name}": value}
    metrics.event("end", rounds - 1, tally.step, **best, compute_seconds=compute, **tally.coupling)
    speeds = ()
    if tally.samples:
        speeds = (
            f"samples per second                 {tally.samples / tally.training_seconds:,.0f}  (all ranks)",
            f"coupling                           {100 * coupling / compute:.2f} % of the time of the mini-batches"
            f"{papers}; {coupling:.2f} s, {waited:.2f} s of them "
            f"waiting; {sent / 1e6:.1f} MB sent by this rank",
        )
    for line in (
        f"{f'validation {name} of the reference':33}  {measured([value], unit)}  (training {measured([train], unit)}, "
        f"replicas {measured(outcome.replicas, unit)})",
        *speeds,
        *others(tally.news),
        f"trained                            {tally.step:,} mini-batches a replica "
        f"({tally.step / B:.1f} passes) in {metrics.seconds:.0f} s",
        f"written                            {folder}: reference.pt, checkpoints/, metrics.jsonl, train.log",
    ):
        metrics.say(line)


def others(news):
    """A line on the members of a mailbox, where there is one; news: of Tally."""
    if not news:
        return []
    members, age = (news[name] / news["rounds"] for name in ("members", "age"))
    return [f"members                            {members:.1f} in the mean, the others' x^a {age:.1f} rounds old"]


def count(number, what):
    return f"{number} {what}{'s' * (number > 1)}"


COUNTERS = ("coupling_seconds", "coupling_wait_seconds", "coupling_bytes_sent")


def coupling_counters(optimizer):
    """What the optimiser has counted of its coupling so far, under the names of metrics.jsonl."""
    return {name: getattr(optimizer, name) for name in COUNTERS}
