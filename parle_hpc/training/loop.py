"""The loop of a run: L times (8a) and (8b), then (8c) and (8d), then what happens between two rounds."""

import time
from contextlib import closing

import torch
from torch.nn.functional import cross_entropy

from ..cluster.agreement import Agreement, from_all
from ..errors import Drifted, Saved
from .diverging import stop_if_diverged, trouble
from .drift import compare_weights
from .saving import ASKED
from .summary import coupling_counters, summarise


def train(parts):
    """Train from parts.first_round on; validate and save now and then; keep the reference.

    Raises Saved where a signal asked for an end, Diverged, and Drifted.
    """
    with closing(parts.watchdog), closing(parts.metrics):
        start(parts)
        outcome = all_rounds(parts)
        if outcome is None:
            # all trained, in another folder or before the reference was written
            outcome = parts.validator(parts.first_round - 1, parts.rounds, last=True)
        summarise(parts.metrics, outcome, parts.tally, parts.rounds, parts.B, parts.folder)


def start(parts):
    """Tell what is about to run, and where from."""
    t = parts.topology
    event, round = ("resume", parts.first_round - 1) if parts.first_round else ("start", 0)
    device = parts.params[0].device.type
    parts.metrics.event(event, round, parts.tally.step, ranks=t.n * t.m, device=device)
    for line in parts.news:
        parts.metrics.say(line)


def all_rounds(parts):
    """Every round and what comes after it; the last Outcome, or None where no round was left."""
    p, r, saving = parts, parts.settings.run, parts.saving
    rank, ranks = p.topology.world.Get_rank(), p.topology.world.Get_size()
    agreement, outcome = Agreement(p.topology.world, 4), None
    ends = (p.hosts, p.topology.m, p.optimizer.round_length, p.settings.schedule.lr)
    same = [p.optimizer.x] if p.settings.algorithm.inside == "workers" else p.params
    p.model.train()
    for round in range(p.first_round, p.rounds):
        last = round + 1 == p.rounds
        p.watchdog.beat(f"in round {round + 1}")
        with p.trace(round):
            losses = one_round(p, round)

        found, asked = trouble(losses, round, rank, ranks), ASKED if p.preemption.asked else 0
        worst, stop, save, written = agreement.exchange(found, asked, *saving.words(round))
        stop_if_diverged(worst, *ends, saving.older)
        if last:
            stop_if_diverged(agreement.finish()[0], *ends, saving.older)
        if (round + 1) % r.check_every == 0:
            try:
                compare_weights(same, p.topology, p.hosts)
            except Drifted as error:
                raise Drifted(f"round {round + 1}: {error}{saving.older}; start again without that node") from None
        error = None
        if last or (round + 1) % r.validate_every == 0:
            p.watchdog.beat(f"in the validation after round {round + 1}")
            outcome = p.validator(round, p.rounds, last)
            error = outcome.test.error
        saving.settle_where(written)
        if stop == ASKED and not last:
            save_and_end(p, round, error)
        if last or (save == ASKED and not saving.under_way):
            saving.start(round, error)
        if last:
            saving.settle()
    return outcome


def one_round(parts, round):
    """L times (8a) and (8b), which ends with (8c) and (8d); the losses on this rank, shape (L,)."""
    p, optimizer, losses, started = parts, parts.optimizer, [], time.perf_counter()
    a = p.settings.algorithm
    before = coupling_counters(optimizer)
    values = {"gamma": optimizer.gamma, "rho": optimizer.rho, "lr": optimizer.param_groups[0]["lr"]}
    for _ in range(optimizer.round_length):
        optimizer.zero_grad()
        loss = backward(p.model, *p.loader(p.tally.step), p.settings.data.accumulate)
        if a.inside == "gradients":
            p.topology.average_gradients(p.params)
        if a.clip is not None:
            torch.nn.utils.clip_grad_norm_(p.params, a.clip)
        optimizer.step()
        p.scheduler.step()
        losses.append(loss)
        p.tally.step += 1
        p.watchdog.beat()
    losses = torch.stack(losses).float().cpu()
    seconds = time.perf_counter() - started
    samples = len(losses) * p.settings.data.batch_size * p.topology.n
    took = {name: value - before[name] for name, value in coupling_counters(optimizer).items()}
    p.tally.add(samples, seconds, took)
    p.metrics.event("round", round, p.tally.step, **values, samples_per_second=samples / seconds, **took)
    p.metrics.progress(losses.mean().item())
    return losses


def backward(model, images, labels, parts):
    """Gradients of the mean loss of a mini-batch, part by part; the loss, shape ()."""
    total = 0.0
    for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        loss = cross_entropy(model(some), theirs)
        if parts > 1:
            loss = loss * (len(some) / len(images))
        loss.backward()
        total = total + loss.detach()
    return total


def save_and_end(parts, round, error):
    """Save after round `round`, whose validation error is `error`, and raise Saved; OSError where that fails."""
    p = parts
    p.saving.start(round, error)
    problem = p.saving.settle()
    p.optimizer.finish()
    signals = [name for name in from_all(p.topology.world, p.preemption.asked) if name]
    if problem:
        raise OSError(f"asked to end by {signals[0]}, and not saved: {problem}{p.saving.older}")
    raise Saved(f"saved after round {round + 1}/{p.rounds} on {signals[0]}; the same command goes on")
