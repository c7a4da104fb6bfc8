"""What a run has around its mini-batches: checkpoints, resume, signals, the watchdog, checks, metrics, and its end."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import resume as checkpoint
from ..checkpoints.saver import Saver
from ..cluster.agreement import Agreement, by_first, from_all
from ..cluster.signals import preemption
from ..cluster.topology import Topology
from ..cluster.waiting import Watchdog, leave, leave_saved
from ..errors import DIVERGED, BadInput, Diverged, Drifted, Saved
from . import folder
from .diverging import stop_if_diverged, trouble
from .drift import compare_steps, compare_weights
from .metrics import PLACE, Metrics, plain
from .passes import over
from .saving import ASKED, Saving
from .summary import own_headline
from .validator import save

ROOM = 4096  # losses of a round


class Session:
    """A run of a loop of your own; that of parle_hpc.train stands on the same.

        with Session(out="runs/mine", topology=topology, model=model, optimizer=optimizer) as session:
            for step, (images, labels) in session.batches(loader, epochs):   # from where a checkpoint left off
                ...                                                          # a mini-batch
                session.loss(loss)
            session.validated(step, {"val_loss": value})

    or, where mini-batches come from elsewhere, `for step in session.steps(10_000)`.

    Checkpoints are written at the ends of rounds, of L steps, by a thread, complete or not there at all. SIGUSR1,
    SIGUSR2, SIGTERM and Ctrl-C, to any rank, save and end the job with status 85; the same command goes on. What ends a
    run otherwise: a loss that is not finite (status 3), replicas whose ranks drift apart, a rank without progress (1),
    an exception on any rank, with its traceback. Random generators go on where they were, too.

    Args:
        out: output folder, on a file system that all ranks share.
        topology: Topology.
        model, optimizer: the network, and Parle, or another optimiser of parle_hpc, over its parameters.
        keep: {name: object with state_dict and load_state_dict} to be saved beside them, such as a scheduler. Of what
            state_dict gives, torch.load(weights_only=True) must be able to read all. A torch scheduler brings back the
            length that it was made for.
        resume: "auto" goes on from the newest intact checkpoint in `out`, "never" wants a folder without a run, and the
            folder of another run is gone on from where `out` has no checkpoint.
        every, minutes: rounds between two checkpoints (before that after 5, 10, 20, 40 and 80), and minutes after which
            there is one in any case.
        checkpoints: complete ones that stay, beside the one that validated best.
        check_every: rounds after which the ranks of a replica compare their weights.
        patience, grace: seconds without progress, and after a signal, after which the job is ended.
        seed: from which ranks draw that a checkpoint does not know.
        lower_is_better: of the first value that `validated` is given.

    Collective over all ranks. Raises BadInput where the folder cannot be written, a living run holds it, or its
    checkpoints are of another network.

    Attributes:
        folder: output folder, one for all ranks.
        stored: the checkpoint that it goes on from, or None.
        first_round: the round that it begins with, from 0.
        news: lines to say at the start.
        advice: what to do where the loss is not finite.
        lower_is_better: as given.
    """

    def __init__(
        self,
        *,
        out: str | os.PathLike,
        topology: Topology,
        model: torch.nn.Module | None = None,
        optimizer: Any = None,
        keep: dict[str, Any] | None = None,
        resume: str = "auto",
        every: int = 100,
        minutes: float = 10.0,
        checkpoints: int = 2,
        check_every: int = 10,
        patience: float = 600.0,
        grace: float = 120.0,
        seed: int = 0,
        lower_is_better: bool = True,
    ) -> None:
        t, self._rank = topology, topology.world.Get_rank()
        self.topology, self.folder, self._seed, self._check_every = t, Path(out), seed, check_every
        self.preemption = preemption(self._rank)
        self.preemption.grace = grace
        self.watchdog = Watchdog(self._rank, patience)
        self._hold: Any = None
        try:
            by_first(t, self._take_folder, resume)
            self.stored, self.news = folder.find_checkpoint(self.folder, str(resume), t)
        except BaseException:
            self._let_go()
            raise
        self._every, self._minutes = every, minutes
        self.first_round = 0 if self.stored is None else self.stored.manifest["round"] + 1
        self.metrics = Metrics(self.folder if self._rank == 0 else None)
        self._saver = Saver(self.folder, t.world, patience, checkpoints)
        self._losses: list[torch.Tensor] = []
        self._room = torch.empty(ROOM)
        self._joined: torch.Tensor | None = None
        self._changed: list[str] = []
        self.lower_is_better, self._score = lower_is_better, None
        self._agreement = Agreement(t.world, 6)
        self.advice, self.optimizer = "lower the learning rate; nothing more is saved", None
        if model is not None:
            self.take_up(model, optimizer, keep)
            self.news.insert(0, own_headline(t, optimizer, self._params, self.folder))

    def _take_folder(self, resume):
        self._hold = folder.take(self.folder, resume)

    def _let_go(self):
        if self._hold is not None:
            self._hold.release()
        self.watchdog.close()

    def take_up(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        keep: dict[str, Any] | None = None,
        *,
        batches_per_pass: int | None = None,
        **facts: Any,
    ) -> None:
        """Take over what trains, and bring it to where the checkpoint was taken, if there is one.

        What the constructor does where it is given a model. batches_per_pass: B, where the optimizer does not know it.
        facts: what manifests say of the run, as JSON can. Collective over all ranks.
        """
        t, keep = self.topology, keep or {}
        if not hasattr(optimizer, "at_reference"):
            raise BadInput(
                f"a Session's optimizer must be one of parle_hpc, such as Parle, not {type(optimizer).__name__}"
            )
        t.together(checkpoint.check_kept, keep)
        self.model, self.optimizer = model, optimizer
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._same = [optimizer.x] if getattr(optimizer, "inside", None) == "workers" else self._params
        self._hosts = from_all(t.world, os.uname().nodename)
        self._length = optimizer.round_length
        # which SGD and SAM do not know
        self.metrics.batches_per_pass = batches_per_pass or getattr(optimizer, "B", math.nan)
        if self.stored is not None:
            self._saver.last = self.stored.manifest["round"]
            told, changed = checkpoint.restore(self.stored, optimizer, model, keep, t, self._seed)
            self.metrics.go_on(self._saver.last, told["seconds"])
            self._changed = changed
        by_first(t, folder.clear, self.folder, self._saver.last, self.metrics)
        self._saving = self._make_saving(keep, {"n": t.n, "m": t.m, "lower_is_better": self.lower_is_better, **facts})

    def _make_saving(self, keep, facts):
        t = self.topology

        def snapshot():
            return checkpoint.capture(self.optimizer, self.model, keep, t.place, t.m, {"seconds": self.metrics.seconds})

        return Saving(
            self._saver,
            snapshot,
            facts,
            every=self._every,
            minutes=self._minutes,
            metrics=self.metrics,
            watchdog=self.watchdog,
            round_length=self._length,
            decides=self._rank == 0,
        )

    def rounds_saved(self) -> int:
        """Rounds in the last complete checkpoint."""
        return 0 if self._saver.last is None else self._saver.last + 1

    def steps(self, total: int) -> Iterator[int]:
        """The steps that are left of `total`, from 0; between two rounds all that a run does there.

        Steps after the last whole round are done anew by a run that goes on. Raises BadInput where the replicas do not
        make equally many, with pace="time".
        """
        if getattr(self.optimizer, "pace", "steps") == "time":
            raise BadInput(
                "Session.steps, and batches: with pace='time' the replicas make different numbers of steps; go over "
                "rounds(total), and in each make optimizer.steps_in_round of them"
            )
        whole = total // self._length
        for round in self.rounds(whole):
            for step in range(round * self._length, (round + 1) * self._length):
                yield step
                self.watchdog.beat()
        if total % self._length:
            self._keep_last()
        yield from range(whole * self._length, total)

    def batches(self, loader: Any, epochs: int) -> Iterator[tuple[int, Any]]:
        """(Step, mini-batch), the `steps` of so many passes over a DataLoader.

        Its sampler must have set_epoch, as torch's DistributedSampler has. What its data set draws in this process goes
        on as if nothing had been stopped; its worker processes are seeded by the pass. Raises BadInput where there is
        no set_epoch.
        """
        seed = checkpoint.seed_of(self._seed, self._rank)
        yield from over(loader, self.steps(epochs * len(loader)), seed)
        # also where nothing was left: what is done with the loader afterwards sees the last pass
        loader.sampler.set_epoch(epochs - 1)

    def rounds(self, total: int) -> Iterator[int]:
        """The rounds that are left of `total`, from 0; after each, all that a run does between two."""
        self._start(total)
        for round in range(self.first_round, total):
            self._losses, self._joined, self._score = [], None, None
            self.watchdog.beat(f"in round {round + 1}")
            yield round
            self._after(round, total)

    def _start(self, total):
        t, first = self.topology, self.first_round
        event, round = "start" if self.stored is None else "resume", max(0, first - 1)
        step, device = first * self._length, self._params[0].device.type
        self.metrics.event(event, round, step, ranks=t.n * t.m, device=device, lower_is_better=self.lower_is_better)
        self.metrics.expect(total, first)
        goes_on = []
        if self.stored is not None:
            goes_on = [f"goes on after round {first}/{total}, from {self.stored.folder}", *self._changed]
        for line in (*self.news, *goes_on):
            self.metrics.say(line)

    def _after(self, round, total):
        """What follows a round: all ranks agree on trouble, signals and saving, each known a round later, unwaited."""
        saving, last = self._saving, round + 1 == total
        losses = self.losses()
        o, ranks = self.optimizer, len(self._hosts)
        mine = Agreement.NOTHING if losses is None else trouble(losses, o.steps, self._rank, ranks)
        asked = ASKED if self.preemption.asked else 0
        told = self._agreement.exchange(mine, asked, *saving.words(round), o.nominal_steps, -o.nominal_steps)
        self._judge(told, round - 1)
        if last:
            self._judge(self._agreement.finish(), round)
        _, stop, save, written, *_ = told
        if (round + 1) % self._check_every == 0:
            try:
                compare_weights(self._same, self.topology, self._hosts)
            except Drifted as error:
                raise Drifted(f"round {round + 1}: {error}{saving.older}; start again without that node") from None
        self.metrics.progress(None if losses is None else losses.mean().item())
        saving.settle_where(written)
        if stop == ASKED and not last:
            self._save_and_end(round, total)
        if save == ASKED and not last and not saving.under_way:
            saving.start(round, self._score)

    def _judge(self, told, round):
        """Raise Diverged or Disagreement where that is what the ranks' least numbers of round `round` say."""
        worst, *_, least, most = told
        stop_if_diverged(worst, self._hosts, self.topology.m, round, self.advice, self._saving.older)
        compare_steps(least, -most, round)

    def _save_and_end(self, round, total):
        """Save after round `round`, and raise Saved; OSError where that fails."""
        self._saving.start(round, self._score)
        problem = self._saving.settle()
        self.optimizer.finish()
        signals = [name for name in from_all(self.topology.world, self.preemption.asked) if name]
        if problem:
            raise OSError(f"asked to end by {signals[0]}, and not saved: {problem}{self._saving.older}")
        raise Saved(f"saved after round {round + 1}/{total} on {signals[0]}; the same command goes on")

    def loss(self, value: torch.Tensor) -> None:
        """Note this rank's loss of a mini-batch, shape (); where one is not finite the job ends, a round later."""
        value = value.detach()
        if value.device.type == "cpu" and len(self._losses) < ROOM:
            # a tensor that was made in the mini-batch and stays keeps apart what that has freed around it
            value = self._room[len(self._losses)].copy_(value)
        self._losses.append(value)
        self._joined = None

    def losses(self) -> torch.Tensor | None:
        """Those of this round, one a mini-batch, float32 on the CPU, for which it waits; None where none was noted."""
        if self._joined is None and self._losses:
            self._joined = torch.stack(self._losses).float().cpu()
        return self._joined

    def validated(self, step: int, values: dict[str, Any]) -> None:
        """Write `values` of a validation after step `step`, counted from 0, into metrics.jsonl: numbers, or tensors.

        The first one says which checkpoint is the best, of those that are made at the end of a validation's round.
        """
        for name in values.keys() & {*PLACE}:
            raise BadInput(f"Session.validated: {name!r} is in each line of metrics.jsonl already; give another name")
        self.event("validate", step, **values)
        self._score = plain(next(iter(values.values()), None))

    def event(self, event: str, step: int, **values: Any) -> None:
        """Write a line of metrics.jsonl after step `step`, counted from 0: numbers, texts, tensors, or lists."""
        self.metrics.event(event, step // self._length, step + 1, **values)

    def keep_reference(self) -> None:
        """Write the model's state dict, which inside at_reference is the reference's, as reference.pt, by rank 0."""
        if self._rank == 0:
            save({name: value.detach().cpu() for name, value in self.model.state_dict().items()}, self.folder)

    def say(self, line: str) -> None:
        """One line for people, by rank 0: on the screen and in train.log."""
        self.metrics.say(line)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None and self.optimizer is not None:
            self._keep_last()
        self._let_go()
        self.metrics.close()
        if isinstance(error, Saved):
            leave_saved(self.topology, str(error))
        if isinstance(error, Diverged):
            leave(error, DIVERGED)
        if isinstance(error, Drifted):
            leave(error, 1, speaks=self.topology.place == 0)
        self.preemption.over()

    def _keep_last(self):
        """A checkpoint of the last round, where there is none and the optimizer is at its end."""
        self._agreement.finish()
        done, within = self.optimizer.progress
        round = done - 1
        # a loop that was left in mid-round leaves a state that no round has
        if not within and round >= 0 and round != self._saver.last:
            self._saving.start(round, self._score)
        if self._saving.under_way:
            self._saving.settle()
