"""What a run says of itself at its start and at its end."""

from .paper import COUPLING


def announce(run):
    """What is about to run, and where from."""
    s, t = run.settings, run.topology
    place = {"ranks": t.n * t.m, "device": run.device.type}
    if run.first_round:
        run.metrics.event("resume", run.first_round - 1, run.step, **place)
    else:
        run.metrics.event("start", 0, 0, **place)
    size = sum(p.numel() for p in run.params)
    run.metrics.say(
        f"{s.algorithm.name}: {count(t.n, 'replica')} x {count(t.m, 'rank')}, {s.model.name} ({size:,} parameters) "
        f"on {run.data.name} ({len(run.data.train):,} + {len(run.data.test):,} images), "
        f"{count(run.rounds, 'round')} of {run.optimizer.round_length} mini-batches of {s.data.batch_size}, "
        f"{run.device.type}, {count(t.threads, 'thread')} a rank"
    )
    for line in run.news:
        run.metrics.say(line)


def summarise(run, test, train, replica_error):
    """The end: errors, a Score each and the replicas' errors in percent, speed, and what the coupling took."""
    coupling, waited, sent = (run.coupling[name] for name in coupling_counters(run.optimizer))
    compute = run.training_seconds - coupling
    run.metrics.event("end", run.rounds - 1, run.step, val_error=test.error, compute_seconds=compute, **run.coupling)
    for line in (
        f"validation error of the reference  {test.error:.2f} %  (training {train.error:.2f} %, "
        f"replicas {', '.join(f'{e:.2f}' for e in replica_error)} %)",
        f"samples per second                 {run.samples / run.training_seconds:,.0f}  (all ranks)",
        f"coupling                           {100 * coupling / compute:.2f} % of the time of the mini-batches "
        f"(Parle with WRN-28-10 in the paper: {COUPLING['wrn']} %); {coupling:.2f} s, {waited:.2f} s of them "
        f"waiting; {sent / 1e6:.1f} MB sent by this rank",
        f"trained                            {run.step:,} mini-batches a replica "
        f"({run.step / run.batches.B:.1f} passes) in {run.metrics.seconds:.0f} s",
        f"written                            {run.folder}: reference.pt, checkpoints/, metrics.jsonl, train.log",
    ):
        run.metrics.say(line)


def count(number, what):
    return f"{number} {what}{'s' * (number > 1)}"


def coupling_counters(optimizer):
    """What the optimiser has counted of its coupling so far, under the names of metrics.jsonl."""
    return {
        "coupling_seconds": optimizer.coupling_seconds,
        "coupling_wait_seconds": optimizer.coupling_wait_seconds,
        "coupling_bytes_sent": optimizer.coupling_bytes_sent,
    }
