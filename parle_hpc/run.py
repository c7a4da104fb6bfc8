"""One training run: set up; L times (8a) and (8b), then (8c) and (8d); validate; keep the reference."""

import math
import os
import time
from collections import Counter
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from . import config
from .data.augment import augment
from .data.prepare import prepare
from .data.split import MiniBatches, seen_by
from .data.store import default_path, open_dataset
from .evaluate import Group, Validation, network, relative_spread, untouched
from .failure import BadInput, Diverged
from .metrics import Metrics
from .optim import SGD, ElasticSGD, EntropySGD, Parle
from .paper import COUPLING
from .topology import Agreement


def make_optimizer(settings, params, topology, B):
    """The optimiser that the settings name, over `params`, with B mini-batches in a pass."""
    a = settings.algorithm
    common = {"lr": settings.schedule.lr, "momentum": a.momentum, "weight_decay": a.weight_decay}
    inner = {"L": a.L, "alpha": a.alpha, "gamma0": a.gamma0, "batches_per_epoch": B, "inner_lr": a.inner_lr}
    if a.name == "parle":
        groups = {"comm": topology.cross, "replica": topology.replica, "inside": a.inside, "payload": a.payload}
        return Parle(params, rho0=a.rho0, reference=a.reference, **groups, **inner, **common)
    if a.name == "entropy_sgd":
        return EntropySGD(params, **inner, **common)
    if a.name == "elastic_sgd":
        return ElasticSGD(params, rho0=a.rho0, batches_per_epoch=B, scoping=a.scoping, comm=topology.cross, **common)
    return SGD(params, **common)


def build_model(settings, data, share):
    """The network that the settings name for this data set, with new weights.

    share: images of a mini-batch on each rank. Raises BadInput where the network cannot take them.
    """
    shape = data.train.images.shape[1:]
    model = network(settings, data)
    if share < 2 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise BadInput(
            f"--data.batch_size {settings.data.batch_size}: one image a rank is too few for BatchNorm; "
            f"take at least {2 * settings.data.batch_size}, or fewer ranks a replica"
        )
    try:
        with torch.no_grad(), untouched(model):
            model.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        raise BadInput(
            f"--model.name {settings.model.name} does not take {data.name}'s images, {size} ({error})"
        ) from None
    return model


def open_output(settings):
    """Make the output folder and write config.toml into it; the folder. Raises BadInput where that is not possible."""
    folder = Path(settings.out or Path("runs") / f"{Path(settings.recipe).stem}-{run_name(os.environ)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "metrics.jsonl").exists():
            raise BadInput(f"--out {folder}: holds a run already; give another folder, or leave --out away")
        config.write(settings, folder / "config.toml")
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    return folder


def run_name(environment):
    """The job's (array) id under Slurm, so that a requeued job finds itself; else date and time."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID") or f"{datetime.now():%Y%m%d-%H%M%S}"


class Run:
    """One training run on this rank: everything that `train` needs, set up and checked on all ranks."""

    def __init__(self, settings, topology):
        self.settings, self.topology = settings, topology
        self.chief = topology.world.Get_rank() == 0
        self.device = topology.together(topology.device, settings.run.device)
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
        folder = topology.together(open_output, settings) if self.chief else topology.together(lambda: None)
        self.folder = topology.world.bcast(folder)

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
        self.validation = Validation(self.model, self.data, settings.data.batch_size, self.device, topology.world, used)
        self.metrics = Metrics(self.folder if self.chief else None, self.rounds, B)
        self.step = 0
        self.training_seconds = 0.0
        self.coupling = Counter()  # of the rounds, without what validations wait for

    def train(self):
        """L times (8a) and (8b), (8c) and (8d), and so on; validate now and then; keep the reference."""
        self._announce()
        self.model.train()
        agreement = Agreement(self.topology.world)
        for round in range(self.rounds):
            with self._trace(round):
                losses = self._round(round)
            self._stop_if_diverged(agreement.exchange(self._trouble(losses, round)))
            last = round + 1 == self.rounds
            if last:
                self._stop_if_diverged(agreement.finish())
            if last or (round + 1) % self.settings.run.validate_every == 0:
                self._validate(round, last)
        self.metrics.close()

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
        losses = torch.stack(losses).float().cpu()
        seconds = time.perf_counter() - started
        self.training_seconds += seconds
        samples = len(losses) * self.settings.data.batch_size * self.topology.n
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
            f"the loss became NaN or infinite in round {round}, step {step}, replica {replica}; "
            f"lower --schedule.lr, now {self.settings.schedule.lr:g}; no reference was written"
        )

    def _validate(self, round, last):
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
            self._summarise(test, train, values["replica_error"])

    def _replica_errors(self):
        """Validation error of each replica's own x^a, which the live weights are at the end of a round."""
        batch_size = self.settings.data.batch_size
        comm, seen = self.topology.replica, self.validation.seen
        alone = Validation(self.model, self.data, batch_size, self.device, comm, seen)
        test, _, state = alone.validate(self.settings.run.statistics_batches)
        if self.settings.run.save_replicas and self.topology.place == 0:
            (self.folder / "replicas").mkdir(exist_ok=True)
            save(state, self.folder / "replicas" / f"{self.topology.replica_index}.pt")
        errors = np.zeros(self.topology.n)
        errors[self.topology.replica_index] = test.error
        return Group(self.topology.cross).sum(errors).tolist()

    def _announce(self):
        s, t = self.settings, self.topology
        self.metrics.event("start", 0, 0, ranks=t.n * t.m, device=self.device.type)
        size = sum(p.numel() for p in self.params)
        self.metrics.say(
            f"{s.algorithm.name}: {count(t.n, 'replica')} x {count(t.m, 'rank')}, {s.model.name} ({size:,} parameters) "
            f"on {self.data.name} ({len(self.data.train):,} + {len(self.data.test):,} images), "
            f"{count(self.rounds, 'round')} of {self.optimizer.round_length} mini-batches of {s.data.batch_size}, "
            f"{self.device.type}, {count(t.threads, 'thread')} a rank"
        )

    def _summarise(self, test, train, replica_error):
        samples = self.step * self.settings.data.batch_size * self.topology.n
        coupling, waited, sent = (self.coupling[name] for name in coupling_counters(self.optimizer))
        compute = self.training_seconds - coupling
        self.metrics.event(
            "end", self.rounds - 1, self.step, val_error=test.error, compute_seconds=compute, **self.coupling
        )
        for line in (
            f"validation error of the reference  {test.error:.2f} %  (training {train.error:.2f} %, "
            f"replicas {', '.join(f'{e:.2f}' for e in replica_error)} %)",
            f"samples per second                 {samples / self.training_seconds:,.0f}  (all ranks)",
            f"coupling                           {100 * coupling / compute:.2f} % of the time of the mini-batches "
            f"(Parle with WRN-28-10 in the paper: {COUPLING['wrn']} %); {coupling:.2f} s, {waited:.2f} s of them "
            f"waiting; {sent / 1e6:.1f} MB sent by this rank",
            f"trained                            {self.step:,} mini-batches a replica "
            f"({self.step / self.batches.B:.1f} passes) in {self.metrics.seconds:.0f} s",
            f"written                            {self.folder}: reference.pt, metrics.jsonl, train.log, config.toml",
        ):
            self.metrics.say(line)


def count(number, what):
    return f"{number} {what}{'s' * (number > 1)}"


def make_digits(path, local_rank):
    """The built-in data set, made where it is missing by the first rank of each node."""
    if local_rank == 0 and not path.exists():
        prepare("digits", out=path)


def save(state, path):
    """A state dict on disk, complete or not there at all."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def coupling_counters(optimizer):
    """What the optimiser has counted of its coupling so far, under the names of metrics.jsonl."""
    return {
        "coupling_seconds": optimizer.coupling_seconds,
        "coupling_wait_seconds": optimizer.coupling_wait_seconds,
        "coupling_bytes_sent": optimizer.coupling_bytes_sent,
    }
