"""What a run says of itself at its start and at its end."""

import torch

PAPERS_COUPLING = 0.52  # section 4.1: time of (8c) and (8d) over that of the mini-batches, WRN-28-10, in percent


def headline(settings, topology, data, params, rounds, round_length, device):
    """What is about to run."""
    s, t = settings, topology
    size = sum(p.numel() for p in params)
    return (
        f"{s.algorithm.name}: {count(t.n, 'replica')} x {count(t.m, 'rank')}, {s.model.name} ({size:,} parameters) "
        f"on {data.name} ({len(data.train):,} + {len(data.test):,} images), "
        f"{count(rounds, 'round')} of {round_length} mini-batches of {s.data.batch_size}, "
        f"{device.type}, {count(torch.get_num_threads(), 'thread')} a rank"
    )


def summarise(metrics, outcome, tally, rounds, B, folder):
    """The end: the Outcome of the last validation, speed, and what the coupling took.

    B: mini-batches in a pass.
    """
    test, train, replica_error = outcome
    coupling, waited, sent = (tally.coupling[name] for name in COUNTERS)
    compute = tally.training_seconds - coupling
    metrics.event("end", rounds - 1, tally.step, val_error=test.error, compute_seconds=compute, **tally.coupling)
    for line in (
        f"validation error of the reference  {test.error:.2f} %  (training {train.error:.2f} %, "
        f"replicas {', '.join(f'{e:.2f}' for e in replica_error)} %)",
        f"samples per second                 {tally.samples / tally.training_seconds:,.0f}  (all ranks)",
        f"coupling                           {100 * coupling / compute:.2f} % of the time of the mini-batches "
        f"(Parle with WRN-28-10 in the paper: {PAPERS_COUPLING} %); {coupling:.2f} s, {waited:.2f} s of them "
        f"waiting; {sent / 1e6:.1f} MB sent by this rank",
        f"trained                            {tally.step:,} mini-batches a replica "
        f"({tally.step / B:.1f} passes) in {metrics.seconds:.0f} s",
        f"written                            {folder}: reference.pt, checkpoints/, metrics.jsonl, train.log",
    ):
        metrics.say(line)


def count(number, what):
    return f"{number} {what}{'s' * (number > 1)}"


COUNTERS = ("coupling_seconds", "coupling_wait_seconds", "coupling_bytes_sent")


def coupling_counters(optimizer):
    """What the optimiser has counted of its coupling so far, under the names of metrics.jsonl."""
    return {name: getattr(optimizer, name) for name in COUNTERS}
