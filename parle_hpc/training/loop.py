"""The loop of a run: L times (8a) and (8b), then (8c) and (8d), then what happens between two rounds."""

import time
from contextlib import closing, nullcontext
from functools import partial

import torch

from .summary import coupling_counters, shown, summarise


def train(parts):
    """Train the rounds that are left; validate now and then; keep the reference.

    Raises Saved where a signal asked for an end, Diverged, and Drifted.
    """
    p, session = parts, parts.session
    p.computing.model.train()
    with closing(p.ahead) if p.ahead else nullcontext(), p.mailbox or nullcontext():
        for round in session.rounds(p.rounds):
            with p.trace(round):
                one_round(p)
            if (round + 1) % p.settings.run.validate_every == 0 and round + 1 < p.rounds:
                session.watchdog.beat(f"in the validation after round {round + 1}")
                validate(p, round)
        # also where all was trained before, in another folder or without a reference
        session.watchdog.beat("in the last validation")
        outcome = validate(p, p.rounds - 1, last=True)
    summarise(session.metrics, outcome, p.computing.task, p.tally, p.rounds, p.B, session.folder)


def validate(parts, round, last=False):
    """The Outcome after round `round`, told; last: keep the reference."""
    p, session = parts, parts.session
    outcome = p.validator(last)
    session.validated((round + 1) * p.optimizer.round_length - 1, outcome.values())
    test, train = (shown(score, p.computing.task.units) for score in (outcome.test, outcome.train))
    session.say(
        f"round {round + 1}/{p.rounds}, {session.metrics.seconds:.0f} s: validation {test}; training {train}; "
        f"spread {outcome.spread:.3f}"
    )
    return outcome


def one_round(parts):
    """L times (8a) and (8b), which ends with (8c) and (8d)."""
    p, optimizer, session, started = parts, parts.optimizer, parts.session, time.perf_counter()
    before, sent = coupling_counters(optimizer), p.topology.gradient_bytes_sent
    values = {"gamma": optimizer.gamma, "rho": optimizer.rho, "lr": optimizer.param_groups[0]["lr"]}
    lengths = getattr(optimizer, "lengths", None)
    if lengths is not None:
        values["mini_batches"] = lengths
    for _ in range(optimizer.steps_in_round):
        mini_batch(p)
    session.losses()
    seconds = time.perf_counter() - started
    samples = sum(lengths or [optimizer.round_length] * p.topology.n) * p.settings.data.batch_size
    took = {name: value - before[name] for name, value in coupling_counters(optimizer).items()}
    news = optimizer.coupling_news
    p.tally.add(samples, seconds, took, news)
    took["gradient_bytes_sent"] = p.topology.gradient_bytes_sent - sent
    session.event("round", p.tally.step - 1, **values, samples_per_second=samples / seconds, **took, **news)


def mini_batch(parts):
    """(8a) and (8b); nothing in it waits for the device, but at the end of a round."""
    p, a = parts, parts.settings.algorithm
    averages = a.inside == "gradients"
    for param in p.params:
        param.grad = None
    follow = partial(p.topology.follow_backward, p.params) if averages else None
    p.session.loss(gradients(p, p.loader(p.optimizer.steps), follow))
    if averages:
        p.topology.average_gradients(p.params)
    if a.clip is not None:
        torch.nn.utils.clip_grad_norm_(p.params, a.clip)
    before = p.optimizer.nominal_steps
    p.optimizer.step()
    for _ in range(p.optimizer.nominal_steps - before):
        p.scheduler.step()
        p.tally.step += 1
    p.session.watchdog.beat()


def gradients(parts, batch, follow):
    """This rank's gradients of a mini-batch, for SAM those of (3) alone; the loss of the live weights, shape ()."""
    p, perturbed = parts, getattr(parts.optimizer, "perturbed", None)
    if perturbed is None:
        return backward(p.computing, batch, follow)
    loss = backward(p.computing, batch)
    with perturbed():
        backward(p.computing, batch, follow)
    return loss


def backward(computing, parts, follow=None):
    """Gradients of the mean loss of a mini-batch, part by part, each (samples, batch); the loss, shape ().

    follow: called before the last part's backward pass.
    """
    total, count = 0.0, sum(samples for samples, _ in parts)
    for number, (samples, batch) in enumerate(parts, 1):
        loss = computing.loss(batch)
        if len(parts) > 1:
            loss = loss * (samples / count)
        if follow is not None and number == len(parts):
            follow()
        loss.backward()
        total = total + loss.detach()
    return total
