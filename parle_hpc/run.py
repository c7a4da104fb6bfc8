"""One training run: set up; L times (8a) and (8b), then (8c) and (8d); validate; save; keep the reference."""

import io
import math
import os
import platform
import socket
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from . import checkpoint, config, resume
from .assemble import build_model, make_digits, make_optimizer, open_output
from .data.augment import augment
from .data.split import MiniBatches, seen_by
from .data.store import default_path, open_dataset
from .drift import compare_weights
from .evaluate import Group, Validation, relative_spread
from .failure import BadInput, Diverged, Drifted, Saved, Watchdog
from .memory import keep_freed
from .metrics import Metrics
from .saver import Saver, overdue, reason
from .summary import announce, coupling_counters, summarise
from .topology import Agreement

ASKED = -1  # in an Agreement, where the least number counts


class Run:
    """One training run on this rank: everything that `train` needs, set up and checked on all ranks.

    Args:
        settings: config.Settings.
        topology: Topology.
        preemption: Preemption, which tells of signals.
    """

    def __init__(self, settings, topology, preemption):
        self.settings, self.topology, self.preemption = settings, topology, preemption
        self.rank = topology.world.Get_rank()
        self.chief = self.rank == 0
        preemption.grace = settings.run.grace
        self.watchdog = Watchdog(self.rank, settings.run.patience)
        folder = topology.together(open_output, settings) if self.chief else topology.together(lambda: None)
        self.folder = topology.world.bcast(folder)
        stored, self.news = self._find_checkpoint()
        self.device = topology.together(topology.device, settings.run.device)
        if self.device.type == "cpu":
            keep_freed()
        path = Path(settings.data.path or default_path(settings.data.name))
        if settings.data.name == "digits" and not settings.data.path:
            topology.together(make_digits, path, topology.local_rank)
        d = settings.data
        self.data = topology.together(open_dataset, path, d.name, d.preprocessing, d.samples)
        mine = {"seed": settings.run.seed, "replica": topology.replica_index}
        # section 5: SGD and Entropy-SGD have one replica, which may see a random part alone
        covers = settings.algorithm.name not in config.DATA_PARALLEL
        seen = seen_by(len(self.data.train), settings.data.fraction, n=topology.n, covers=covers, **mine)
        self.batches = MiniBatches(seen, settings.data.batch_size, place=topology.place, m=topology.m, **mine)
        B = self.batches.B

        torch.manual_seed(settings.run.seed)
        self.model = build_model(settings, self.data, settings.data.batch_size // topology.m).to(self.device)
        topology.broadcast([*self.model.parameters(), *self.model.buffers()])
        # dropout differs from rank to rank
        torch.manual_seed(settings.run.seed * 1_000_003 + topology.world.Get_rank() + 1)

        self.params = list(self.model.parameters())
        self.optimizer = make_optimizer(settings, self.params, topology, B)
        s, length = settings.schedule, self.optimizer.round_length
        steps_per_epoch = B * length if settings.algorithm.name in config.ROUNDS else B
        drops = [round(epochs * steps_per_epoch) for epochs in s.drops]
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, drops, gamma=1 / s.drop_factor)
        self.rounds = max(1, math.ceil(s.epochs * steps_per_epoch / length))
        self.rounds = min(self.rounds, s.max_rounds or self.rounds)
        self.averages = settings.algorithm.inside == "gradients"
        used = None if covers else seen
        self.validation = self._validation(topology.world, used)
        self.metrics = Metrics(self.folder if self.chief else None, self.rounds, B)
        self.saver = Saver(self.folder, topology.world, settings.run.patience)
        self.hosts = topology.world.allgather(socket.gethostname())
        self.step = 0
        self.samples, self.training_seconds = 0, 0.0
        self.coupling = Counter()  # of the rounds, without what validations wait for
        self.first_round, self.finished = 0, False
        if stored is not None:
            self._go_on(stored)
        if self.chief and not self.finished:
            self._prepare_folder()

    def _validation(self, comm, seen):
        batch_size = self.settings.data.batch_size
        return Validation(self.model, self.data, batch_size, self.device, comm, seen, self.watchdog.beat)

    def _find_checkpoint(self):
        """(Stored to go on from, or None; lines to say). Collective. Raises BadInput where it is of another run."""
        s, world = self.settings, self.topology.world
        if s.resume == "never":
            return None, []
        self.topology.together(check_source, s.resume)
        stored, lines = resume.find(self.folder, world)
        if stored is None and s.resume != "auto":
            stored, more = resume.find(s.resume, world)
            lines += more
            if stored is None:
                raise BadInput(f"--resume {s.resume}: holds no complete checkpoint; give a run's folder, auto or never")
        if stored is not None:
            resume.check_settings(stored.manifest, s, stored.folder)
        return stored, lines

    def _go_on(self, stored):
        self.saver.last = stored.manifest["round"]
        self.first_round = stored.manifest["round"] + 1
        self.finished = self.first_round >= self.rounds and (self.folder / "reference.pt").exists()
        if self.finished:
            return
        images = [len(self.data.train), len(self.data.test)]
        if stored.manifest["images"] != images:
            before = " + ".join(map(str, stored.manifest["images"]))
            raise BadInput(
                f"--data.path {self.settings.data.path}: holds {images[0]} + {images[1]} images; the checkpoints in "
                f"{stored.folder} were made with {before}; give the same data, or another --out"
            )
        changed = resume.restore(self, stored)
        self.news.append(f"goes on after round {self.first_round}/{self.rounds}, from {stored.folder}")
        if changed:
            self.news.append(changed)

    def _prepare_folder(self):
        """Write config.toml, and put away what an interrupted run left and this one does anew."""
        try:
            config.write(self.settings, self.folder / "config.toml")
            checkpoint.put_away(self.folder, self.saver.last)
            if self.first_round == 0:
                self.metrics.go_on(-1, 0.0)
        except OSError as error:
            raise BadInput(f"--out {self.folder}: cannot be written ({error.strerror}); give one that can") from None

    def tell_finished(self):
        """Say that there is nothing left to do."""
        self.metrics.say(
            f"{self.folder} holds a run that is finished: {self.rounds} rounds; more --schedule.epochs go on with it, "
            "another --out starts anew"
        )
        self.metrics.close()

    def train(self):
        """L times (8a) and (8b), (8c) and (8d), and so on; validate and save now and then; keep the reference.

        Raises Saved where a signal asked for an end, Diverged, and Drifted.
        """
        announce(self)
        self.model.train()
        agreement = Agreement(self.topology.world, 4)
        for round in range(self.first_round, self.rounds):
            self.watchdog.beat(f"in round {round + 1}")
            with self._trace(round):
                losses = self._round(round)
            trouble, stop, save, written = agreement.exchange(*self._words(losses, round))
            self._stop_if_diverged(trouble)
            last = round + 1 == self.rounds
            if last:
                self._stop_if_diverged(agreement.finish()[0])
            if (round + 1) % self.settings.run.check_every == 0:
                try:
                    compare_weights(self)
                except Drifted as error:
                    self.metrics.close()
                    raise Drifted(f"round {round + 1}: {error}{self._older()}; start again without that node") from None
            error = None
            if last or (round + 1) % self.settings.run.validate_every == 0:
                self.watchdog.beat(f"in the validation after round {round + 1}")
                error = self._validate(round, last)
            if self.saver.round is not None and self.saver.round <= written < Agreement.NOTHING:
                self._settle()
            if stop == ASKED and not last:
                self._save_and_end(round, error)
            if last or (save == ASKED and self.saver.round is None):
                self._save(round, error, wait=last)
        if self.first_round >= self.rounds:
            # all trained, in another folder or before the reference was written
            self._validate(self.first_round - 1, last=True)
        summarise(self, *self.result)
        self.metrics.close()

    def _words(self, losses, round):
        """What this rank tells the others at the end of a round: trouble, stop, save, written."""
        s = self.settings.run
        due = (round + 2) % s.checkpoint_every == 0 or overdue(self.saver.age, s.checkpoint_minutes)
        # all ranks take the first one's word, whose clock counts
        save = ASKED if self.chief and due and self.saver.round is None else 0
        written = Agreement.NOTHING
        if self.saver.round is not None:
            written = self.saver.round if self.saver.written else ASKED
        return self._trouble(losses, round), ASKED if self.preemption.asked else 0, save, written

    def _save(self, round, error, wait=False):
        """Start a checkpoint; with `wait`, None once it is complete or what went wrong. Collective over all ranks."""
        if self.saver.round is not None:
            self._settle()
        self.watchdog.beat(f"saving after round {round + 1}")
        t = self.topology
        facts = {
            "step": self.step,
            "n": t.n,
            "m": t.m,
            "val_error": error,
            "images": [len(self.data.train), len(self.data.test)],
            "settings": resume.sections(self.settings),
            "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        }
        self.saver.start(round, resume.capture(self), facts)
        return self._settle() if wait else None

    def _settle(self):
        round = self.saver.round
        problem = self.saver.settle(self.settings.run.keep)
        if problem is None:
            self.metrics.event("checkpoint", round, (round + 1) * self.optimizer.round_length)
        else:
            self.metrics.say(f"no checkpoint after round {round + 1}: {problem}; the run goes on{self._older()}")
        return problem

    def _older(self):
        return "" if self.saver.last is None else f", the one of round {self.saver.last + 1} stays"

    def _save_and_end(self, round, error):
        problem = self._save(round, error, wait=True)
        self.optimizer.finish()
        self.metrics.close()
        signals = [name for name in self.topology.world.allgather(self.preemption.asked) if name]
        if problem:
            raise OSError(f"asked to end by {signals[0]}, and not saved: {problem}{self._older()}")
        raise Saved(f"saved after round {round + 1}/{self.rounds} on {signals[0]}; the same command goes on")

    def _trace(self, round):
        """What --run.trace writes: the second round, since the first has warming up in it."""
        if not self.settings.run.trace or round != min(1, self.rounds - 1):
            return nullcontext()
        from .trace import tracing

        folder = self.folder / "traces"
        folder.mkdir(exist_ok=True)
        return tracing(folder / f"{self.topology.world.Get_rank()}.json")

    def _round(self, round):
        """One round of mini-batches; their losses on this rank, shape (round_length,)."""
        optimizer, started, losses = self.optimizer, time.perf_counter(), []
        before = coupling_counters(optimizer)
        gamma, rho, lr = optimizer.gamma, optimizer.rho, optimizer.param_groups[0]["lr"]
        for _ in range(optimizer.round_length):
            images, labels = self.data.train.batch(self.batches.indices(self.step), self.device)
            if self.settings.data.augment:
                images = augment(images, self.batches.moves(self.step))
            optimizer.zero_grad()
            loss = cross_entropy(self.model(images), labels)
            loss.backward()
            if self.averages:
                self.topology.average_gradients(self.params)
            optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach())
            self.step += 1
            self.watchdog.beat()
        losses = torch.stack(losses).float().cpu()
        seconds = time.perf_counter() - started
        self.training_seconds += seconds
        samples = len(losses) * self.settings.data.batch_size * self.topology.n
        self.samples += samples
        took = {name: value - before[name] for name, value in coupling_counters(optimizer).items()}
        self.coupling.update(took)
        values = {"gamma": gamma, "rho": rho, "lr": lr, "samples_per_second": samples / seconds, **took}
        self.metrics.event("round", round, self.step, **values)
        self.metrics.progress(losses.mean().item())
        return losses

    def _trouble(self, losses, round):
        """The first step whose loss is not finite, joined with this rank in one number; else Agreement.NOTHING."""
        bad = (~losses.isfinite()).nonzero()
        if not len(bad):
            return Agreement.NOTHING
        step = round * len(losses) + bad[0].item()
        return step * self.topology.world.Get_size() + self.topology.world.Get_rank()

    def _stop_if_diverged(self, trouble):
        if trouble == Agreement.NOTHING:
            return
        step, rank = divmod(trouble, self.topology.world.Get_size())
        round, replica = step // self.optimizer.round_length, rank // self.topology.m
        self.metrics.close()
        raise Diverged(
            f"the loss became NaN or infinite in round {round + 1}, step {step}, replica {replica}, rank {rank} on "
            f"{self.hosts[rank]}; lower --schedule.lr, now {self.settings.schedule.lr:g}; no reference was written"
            f"{self._older()}"
        )

    def _validate(self, round, last):
        """Validate the reference, and at the end keep it; its error in percent. Collective over all ranks."""
        limit = None if last else self.settings.run.statistics_batches
        live = [p.detach().clone() for p in self.params]
        with self.optimizer.at_reference():
            spread = relative_spread(live, self.params, self.validation.group)
            test, train, state = self.validation.validate(limit)
        values = {"val_error": test.error, "val_loss": test.loss, "train_error": train.error, "train_loss": train.loss}
        if last:
            values["replica_error"] = self._replica_errors()
        self.metrics.event("validate", round, self.step, **values, spread=spread)
        self.metrics.say(
            f"round {round + 1}/{self.rounds}, {self.metrics.seconds:.0f} s: validation error {test.error:.2f} %, "
            f"training error {train.error:.2f} %, spread {spread:.3f}"
        )
        if last and self.chief:
            save(state, self.folder / "reference.pt")
        self.result = test, train, values.get("replica_error")
        return test.error

    def _replica_errors(self):
        """Validation error of each replica's own x^a, which the live weights are at the end of a round."""
        alone = self._validation(self.topology.replica, self.validation.seen)
        test, _, state = alone.validate(self.settings.run.statistics_batches)
        if self.settings.run.save_replicas and self.topology.place == 0:
            (self.folder / "replicas").mkdir(exist_ok=True)
            save(state, self.folder / "replicas" / f"{self.topology.replica_index}.pt")
        errors = np.zeros(self.topology.n)
        errors[self.topology.replica_index] = test.error
        return Group(self.topology.cross).sum(errors).tolist()


def check_source(given):
    """Raises BadInput where --resume names what is no folder."""
    if given != "auto" and not os.path.isdir(given):
        raise BadInput(f"--resume {given}: no such folder; give a run's folder, or auto or never")


def save(state, path):
    """A state dict on disk, complete or not there at all. Raises OSError with a line for people."""
    memory = io.BytesIO()
    torch.save(state, memory)
    try:
        checkpoint.write_whole(path, memory.getbuffer())
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from None
