"""A run on this rank, put together and checked on all ranks: everything that the loop needs, as one frozen object."""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..checkpoints import resume
from ..cluster.agreement import by_first
from ..cluster.topology import Topology
from ..coupling.posting import Membership
from ..data.ahead import Ahead, ahead_of
from ..data.loader import Loader
from ..data.split import MiniBatches, seen_by
from ..data.stream import stream_of
from ..errors import BadInput
from ..settings import DATA_PARALLEL, Settings, rounds_of
from ..settings import write as write_settings
from .computing import Computing, compiled, settle_precision
from .folder import cannot_be_written
from .membership import begin_beside_others, open_mailbox, replica_number
from .memory import keep_freed
from .opening import check_data, check_task, checked_model, open_task
from .optimizers import averaged, make_optimizer
from .resident import keep_on
from .schedule import Schedule
from .session import Session
from .summary import headline
from .tally import Tally
from .trace import trace_of
from .validation import Validation
from .validator import Validator


@dataclass(frozen=True)
class Parts:
    """What a run consists of.

    Attributes:
        settings, topology, session: as given.
        mailbox: Membership, where the other replicas are jobs of their own; else None.
        computing: Computing, which has the Task and the network.
        ahead: processes or the thread that fetch samples ahead, or None.
        loader: Loader of this rank's mini-batches.
        B: mini-batches in a pass.
        params, optimizer, scheduler: the network's parameters, and what moves them.
        rounds: how many the run has.
        finished: whether nothing is left to do.
        tally, validator: what counts, and validates.
        trace: context manager of a round, which may write a trace of it.
    """

    settings: Settings
    topology: Topology
    session: Session
    mailbox: Membership | None
    computing: Computing
    ahead: Ahead | None
    loader: Loader
    B: int
    params: list
    optimizer: Any
    scheduler: Any
    rounds: int
    finished: bool
    tally: Tally
    validator: Validator
    trace: Callable[[int], AbstractContextManager]


def set_up(settings, session):
    """The Parts of a run. Collective over all ranks.

    Args:
        settings: Settings.
        session: Session, which has the output folder, and says what the run goes on from.

    Raises BadInput, on all ranks, where something in the settings, the task or its data is wrong.
    """
    t, stored, out = session.topology, session.stored, session.folder
    if stored is not None:
        resume.check_settings(stored.manifest, settings, stored.folder)
    device = t.together(t.device, settings.run.device)
    if device.type == "cpu":
        keep_freed()
    settle_precision(settings, t, device, stored)
    sources = open_task(settings, t, out)
    task, train = sources.task, sources.train
    seen, batches = share(settings, train, t)
    model = make_model(settings, train, t, device)
    computing, params = Computing(task, model, device, settings.run.precision), list(model.parameters())
    samples = [len(train), len(sources.validation)]
    mailbox = open_mailbox(settings, t, session, samples, model)
    optimizer = make_optimizer(settings, params, t, batches.B, mailbox)
    # the tasks that come with parle_hpc change no weights behind the optimiser's back
    optimizer.watches_blocks = optimizer.watches_blocks and bool(settings.task.file)
    scheduler, rounds = make_schedule(settings, optimizer, batches.B)
    optimizer = averaged(settings.algorithm, optimizer, rounds)
    tally, finished = Tally(), is_finished(session, rounds)
    session.lower_is_better = task.lower_is_better
    if not finished:
        check_stored(session, settings, samples, rounds)
        by_first(t, write_config, settings, out)
        facts = facts_of(settings, samples)
        session.take_up(model, optimizer, {"schedule": scheduler, "tally": tally}, batches_per_pass=batches.B, **facts)
        if stored is None and mailbox is not None and settings.coupling.wait_for is None:
            begin_beside_others(mailbox, optimizer, scheduler, tally, session, t)
    resident, feed = make_feed(settings, sources, device, t, finished)
    mean = ", or is loss() no mean over the mini-batch?" if settings.task.file else ""
    session.advice = f"lower --schedule.lr, now {settings.schedule.lr:g}{mean}; no reference was written"
    session.news = [
        headline(settings, t, task, samples, params, rounds, optimizer.round_length, device),
        f"writes into {out}, with seed {settings.run.seed}",
        *resident,
        *cut_short(settings.schedule, rounds),
        *session.news,
    ]
    first = optimizer.steps
    loader = partial(Loader, train, batches, device, accumulate=settings.data.accumulate)
    validator = make_validator(settings, session, optimizer, (computing, sources), seen, feed)
    if settings.run.compile and not finished:
        session.news.append(compiled(computing, loader()(first), validator.whole_batches(), t))
    return Parts(
        settings=settings,
        topology=t,
        session=session,
        mailbox=mailbox,
        computing=computing,
        ahead=feed["ahead"],
        loader=loader(first=first, **feed),
        B=batches.B,
        params=params,
        optimizer=optimizer,
        scheduler=scheduler,
        rounds=rounds,
        finished=finished,
        tally=tally,
        validator=validator,
        trace=partial(trace_of, settings.run.trace, min(1, rounds - 1), out / "traces", t.world.Get_rank()),
    )


def check_stored(session, settings, samples, rounds):
    """Raises BadInput where what the run goes on from is of other data, another task, or more rounds."""
    stored = session.stored
    if session.first_round > rounds:
        raise BadInput(
            f"--schedule.max_rounds or epochs: {rounds} rounds, and {stored.folder} has {session.first_round} already; "
            "give more"
        )
    if stored is not None:
        check_data(stored, samples, settings)
        check_task(stored, settings)


def make_feed(settings, sources, device, topology, finished):
    """(Lines to say, {"ahead": Ahead, "stream": Stream}) of how samples come to the device.

    The Sources may be on it from then on, but not of a run that is `finished`.
    """
    mine = topology.seats[topology.world.Get_rank()]
    ranks = sum((seat.node, seat.device) == (mine.node, mine.device) for seat in topology.seats)
    resident = [] if finished else keep_on(device, sources, settings.data, ranks)
    thread = not (sources.task.draws or resident)
    return resident, {
        "ahead": ahead_of(sources, settings.data.workers, device, thread=thread),
        "stream": stream_of(device),
    }


def is_finished(session, rounds):
    """Whether a run of `rounds` has nothing left to do."""
    return session.first_round >= rounds and (session.folder / "reference.pt").exists()


def cut_short(schedule, rounds):
    """A line to say where max_rounds promises more than the epochs have."""
    if schedule.max_rounds is None or schedule.max_rounds <= rounds:
        return []
    return [f"--schedule.epochs {schedule.epochs:g} end after {rounds} rounds, before max_rounds {schedule.max_rounds}"]


def write_config(settings, folder):
    """Write config.toml. Raises BadInput where that is not possible."""
    try:
        write_settings(settings, folder / "config.toml")
    except OSError as error:
        raise cannot_be_written(folder, error) from None


def share(settings, train, topology):
    """(The samples that this replica sees, this rank's MiniBatches of them); train: the Source of training samples."""
    replica, n = replica_number(settings, topology)
    mine = {"seed": settings.run.seed, "replica": replica}
    # section 5: SGD and Entropy-SGD have one replica, which may see a random part alone
    covers = settings.algorithm.name not in DATA_PARALLEL
    seen = seen_by(len(train), settings.data.fraction, n=n, covers=covers, **mine)
    return seen, MiniBatches(seen, settings.data.batch_size, place=topology.place, m=topology.m, **mine)


def make_model(settings, train, topology, device):
    """The network with the weights that all ranks start from; random numbers after it are each rank's own."""
    torch.manual_seed(settings.run.seed)
    model = topology.together(checked_model, settings, train, settings.data.batch_size // topology.m).to(device)
    topology.broadcast([*model.parameters(), *model.buffers()])
    # dropout differs from rank to rank
    rank = replica_number(settings, topology)[0] * topology.m + topology.place
    torch.manual_seed(resume.seed_of(settings.run.seed, rank))
    return model


def make_schedule(settings, optimizer, B):
    """(The scheduler of eta, rounds that the run has), with B mini-batches in a pass."""
    s, length = settings.schedule, optimizer.round_length
    steps_per_epoch, rounds = rounds_of(settings, B, length)
    also = optimizer.inner if s.inner else None
    # a cosine ends with the epochs, also of a run that is to end before
    scheduler = Schedule(optimizer, also, s, steps_per_epoch, rounds * length)
    return scheduler, min(rounds, s.max_rounds or rounds)


def facts_of(settings, samples):
    """What a manifest says of the run; samples: in the training and the validation part."""
    return {
        "samples": samples,
        "data": settings.data.checksum,
        "settings": resume.sections(settings),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def make_validator(settings, session, optimizer, what, seen, feed):
    """What validates the reference; what: (Computing, Sources); feed: the Ahead and the Stream of Validation."""
    t, d, beat = session.topology, settings.data, session.watchdog.beat
    # of one replica that sees a part, the training score is that of the part
    used = seen if settings.algorithm.name in DATA_PARALLEL else None
    at_once = what[1].task.evaluation_batch or -(-d.batch_size // (t.m * d.accumulate))
    validation = partial(Validation, *what, d.batch_size, at_once=at_once, seen=used, **feed)
    return Validator(
        optimizer,
        validation(comm=t.world, beat=beat),
        validation(comm=t.replica, beat=beat),
        t,
        session.folder,
        batches=settings.run.statistics_batches,
        save_replicas=settings.run.save_replicas,
    )
