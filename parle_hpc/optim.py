"""Parle and its relatives as torch optimisers.

    optimizer = Parle(model.parameters(), lr=0.1, batches_per_epoch=B, comm=topology.cross)
    for images, labels in batches:
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        topology.average_gradients(model.parameters())      # where a replica has several ranks
        optimizer.step()                                     # (8a), (8b); after L of them (8c), (8d)
    with optimizer.at_reference():
        validate(model)

A state is one flat vector over all weights, in float32, or float64 where a parameter is. Weights of a narrower type,
such as bfloat16, are live copies of a master in the state's type.
"""

import math
import time
from contextlib import nullcontext
from functools import partial

import torch

from .equations import eq_7a, eq_7b, eq_8a, eq_8b, eq_8c, eq_9
from .flat import FlatOptimizer, in_memory_order, require
from .reference import PAYLOADS, CompressedReference, Gather, reference_over

GAMMA_CLIP, RHO_CLIP = 1.0, 0.1  # section 3.1
REFERENCES = ("current", "lagged", "average")
INSIDE = ("gradients", "workers")
SGD_ROUND = 25  # SGD and Elastic-SGD have no rounds, but are counted, reported and saved in rounds of this many steps


class Parle(FlatOptimizer):
    """Parle, (8a)-(8d) with (9): Entropy-SGD in each replica, coupled to the mean of the replicas every L steps.

    Args:
        params: parameters or parameter groups; lr, momentum, weight_decay and inner_lr may differ by group.
        lr: eta of (8c), annealed by torch's schedulers.
        momentum: mu, Nesterov's, for y and x^a (Remark 2).
        L: inner steps (mini-batches) in a round.
        alpha: of (8b), in [0, 1).
        gamma0, rho0: gamma and rho at the start, (9). rho0 = inf: no elastic term and no traffic.
        batches_per_epoch: B of (9), mini-batches in one pass over what the replica sees.
        inner_lr: eta' of (8a), never annealed; the initial lr where None.
        weight_decay: added to the gradient as weight_decay * y.
        reference: x in (8c). "current": the mean of the x^a of this round; "lagged": of the round before, (8d) read
            strictly, on its own stable only while lr / rho < (1 + mu) / (1 + 2 mu); "average": the mean of z at this
            coupling, which must wait for the network.
        comm: mpi4py communicator over the replicas, of an MPI with MPI_THREAD_MULTIPLE, which mpi4py starts; None for a
            single one.
        replica: mpi4py communicator of this replica's m ranks, among which z, v_x and x are then divided: each rank
            holds, moves and reduces a share of 1/m, and the new x^a is gathered at the coupling. No number changes by
            it. None: every rank holds all. Needed by inside="workers", where every rank holds all too.
        inside: "gradients": the ranks of a replica average their gradients before `step`; "workers": each rank is
            a worker y^b of (10), and the mean of their z^b stands for z in (8c).
        payload: what travels between the replicas: "full", the state's own type, or "bfloat16", half of it, with error
            feedback (reference.CompressedReference), which keeps 1 + 1/n shares more and rounds x in (8c). The
            reference of `at_reference` is exact either way. The constructor is then collective over `comm`.
        gather: what puts the shares of a replica's ranks together, such as Topology.gather, which is NCCL where there
            is one; None: MPI, through the host's memory.

    Raises ValueError for a setting out of range.
    """

    flat_names = ("x", "z", "v_y", "v_x")
    share_names = ("z", "v_x")

    def __init__(
        self,
        params,
        *,
        lr,
        momentum=0.9,
        L=25,
        alpha=0.75,
        gamma0=100.0,
        rho0=1.0,
        batches_per_epoch,
        inner_lr=None,
        weight_decay=0.0,
        reference="current",
        comm=None,
        replica=None,
        inside="gradients",
        payload="full",
        gather=None,
    ):
        require(L >= 1, "L", L, "at least 1")
        require(0 <= alpha < 1, "alpha", alpha, "in [0, 1)")
        require(gamma0 > 0, "gamma0", gamma0, "above 0")
        require(rho0 > 0, "rho0", rho0, "above 0")
        require(batches_per_epoch >= 1, "batches_per_epoch", batches_per_epoch, "at least 1")
        require(inner_lr is None or inner_lr >= 0, "inner_lr", inner_lr, "at least 0")
        require(reference in REFERENCES, "reference", reference, f"one of {', '.join(REFERENCES)}")
        require(inside in INSIDE, "inside", inside, f"one of {', '.join(INSIDE)}")
        require(payload in PAYLOADS, "payload", payload, f"one of {', '.join(PAYLOADS)}")
        require(inside == "gradients" or replica is not None, "replica", replica, "a communicator for inside='workers'")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "inner_lr": inner_lr}
        divided = replica is not None and inside == "gradients"
        place, m = (replica.Get_rank(), replica.Get_size()) if divided else (0, 1)
        super().__init__(params, defaults, place, m)
        self._mine, shares = self._layout.share, self._layout.shares
        for group in self.param_groups:
            if group["inner_lr"] is None:
                group["inner_lr"] = group["lr"]
        self.L, self.alpha, self.B = L, alpha, batches_per_epoch
        self.gamma0, self.rho0, self.reference = gamma0, rho0, reference
        self._elastic = math.isfinite(rho0)
        if reference == "lagged" and self._elastic:
            self.lagged = self._layout.zeros(share=True)
        single = comm is None or comm.Get_size() == 1
        # with one replica x^a is its own mean, so only the other two references have something to keep
        self._mean = None if single and not self._elastic else reference_over(comm, self.x[self._mine], payload)
        self._compressed = isinstance(self._mean, CompressedReference)
        self._mean_of_x = False
        self._deputy = reference_over(replica, self.z) if inside == "workers" else None
        self._gather = None
        if m > 1:
            self._gather = partial(gather, mine=self._mine) if gather else Gather(replica, shares, self.x)

    @property
    def round_length(self):
        """Mini-batches in a round, L."""
        return self.L

    @property
    def t(self):
        """Rounds completed, t of (9)."""
        return self.steps // self.L

    @property
    def gamma(self):
        """gamma_t of this round, (9)."""
        return eq_9(self.gamma0, self.t, self.B, clip=GAMMA_CLIP)

    @property
    def rho(self):
        """rho_t of this round, (9)."""
        return eq_9(self.rho0, self.t, self.B, clip=RHO_CLIP)

    def _references(self):
        return [reference for reference in (self._mean, self._deputy) if reference is not None]

    def _step(self):
        if self._mean is not None:
            self._mean.poll()
        self._inner_step()
        if (self.steps + 1) % self.L == 0:
            started = time.perf_counter()
            self._couple()
            self.coupling_seconds += time.perf_counter() - started

    def _inner_step(self):
        gamma = self.gamma
        for i, group, lists, weights in self._blocks("v_y", "x"):
            if lists:
                y, g, v, xa = lists
                eq_8a(y, v, g, xa, eta=group["inner_lr"], gamma=gamma, mu=group["momentum"])
            z = self._runs["z"][i]
            if z:
                eq_8b(z, self._layout.of_share(i, weights), alpha=self.alpha)
        if self._master is not None:
            self._layout.unpack(self._master)

    def _couple(self):
        z = self.z
        if self._deputy is not None:
            self._deputy.start(self.z)
            z = self._deputy.collect()
        x, rho = self._reference_of_this_round(z), self.rho
        slices = map(self._layout.slices, (self.x[self._mine], self.v_x, z, x))
        for (index, _), *parts in zip(self._layout.blocks, *slices, strict=True):
            if parts[0] is not None:
                group = self.param_groups[index]
                eq_8c(*([part] for part in parts), eta=group["lr"], rho=rho, mu=group["momentum"])
        if self._gather is not None:
            self._gather(self.x)
        self._reset_y()
        if self.reference == "lagged" and self._elastic:
            self.lagged.copy_(self._mean.collect())
        self._restart()

    def _reference_of_this_round(self, z):
        if not self._elastic:
            return self.x[self._mine]
        if self.reference == "average":
            self._mean_of_x = False
            self._mean.start(z)
        # also where `lagged` does not need it yet: x^a must not move while MPI reads it
        newest = self._mean.collect()
        return self.lagged if self.reference == "lagged" else newest

    def _reset_y(self):
        if self._master is not None:
            self._master.copy_(self.x)
        self._layout.unpack(self.x)

    def _take_weights(self):
        self._layout.pack(self.x)
        self.z.copy_(self.x[self._mine])
        if "lagged" in self._flat_state():
            self.lagged.copy_(self.x[self._mine])
        if self._compressed:
            self._mean.reset(self.x[self._mine])
        self._restart()

    def _restart(self):
        """x^a stands still until the next coupling: its mean may travel from now on."""
        if self._mean is not None:
            self._mean_of_x = self._elastic and self.reference != "average"
            if self._mean_of_x:
                self._mean.start(self.x[self._mine])

    def _newest_reference(self):
        if self._mean is None:
            return self.x
        if self._compressed:
            mean = self._mean.exact(self.x[self._mine])
        else:
            if not self._mean_of_x:
                self._mean.start(self.x[self._mine])
            mean = self._mean.collect()
        if self._gather is None:
            return mean
        whole = self._layout.zeros()
        whole[self._mine] = mean
        self._gather(whole)
        return whole

    def _kind(self, name, flat):
        workers_own = self._deputy is not None and name in ("z", "v_y")
        return "own" if workers_own or name == "payload_e" else super()._kind(name, flat)

    def restore(self, saved, steps, groups):
        super().restore(saved, steps, groups)
        if self._compressed and "payload_h" not in saved:
            self._mean.reset(self.x[self._mine])
            self._restart()

    def _restore_weights(self):
        self._reset_y()  # at the end of a round y = x^a

    def _flat_state(self):
        state = super()._flat_state()
        if hasattr(self, "lagged"):
            state["lagged"] = self.lagged
        return state | (self._mean.state if self._mean is not None else {})


class EntropySGD(Parle):
    """Entropy-SGD, (6a)-(6c): Parle without its elastic term. Arguments as Parle's; eta is `lr`, eta' is `inner_lr`."""

    def __init__(
        self,
        params,
        *,
        lr,
        momentum=0.9,
        L=25,
        alpha=0.75,
        gamma0=100.0,
        batches_per_epoch,
        inner_lr=None,
        weight_decay=0.0,
    ):
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            L=L,
            alpha=alpha,
            gamma0=gamma0,
            rho0=math.inf,
            batches_per_epoch=batches_per_epoch,
            inner_lr=inner_lr,
            weight_decay=weight_decay,
        )


class ElasticSGD(FlatOptimizer):
    """Elastic-SGD, (7a) and (7b): every step is coupled. The replicas move by Nesterov's momentum, x by (7b).

    Args:
        params, lr, momentum, weight_decay, comm: as Parle's; lr is eta of (7a) and (7b).
        rho0: rho at the start. Stable only while lr (h + 1/rho) < 1.357 for curvature h.
        batches_per_epoch: B of (9).
        scoping: anneal rho by (9), with t = k since L = 1; otherwise rho stays rho0.

    Raises ValueError for a setting out of range.
    """

    flat_names = ("x", "v")
    round_length = SGD_ROUND
    gamma = None

    def __init__(
        self, params, *, lr, momentum=0.9, rho0=1.0, batches_per_epoch, scoping=True, weight_decay=0.0, comm=None
    ):
        require(rho0 > 0, "rho0", rho0, "above 0")
        require(batches_per_epoch >= 1, "batches_per_epoch", batches_per_epoch, "at least 1")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.rho0, self.B, self.scoping = rho0, batches_per_epoch, scoping
        self._mean = reference_over(comm, self.x)
        # the live weights are scattered over the network's tensors; a reduction wants one vector
        self._sent = self._layout.zeros() if self._master is None else self._master

    @property
    def rho(self):
        """rho of this step, (9) with t = k where scoping is on."""
        return eq_9(self.rho0, self.steps, self.B, clip=RHO_CLIP) if self.scoping else self.rho0

    def _references(self):
        return [self._mean]

    def _step(self):
        started = time.perf_counter()
        mean, rho = self._mean.collect(), self.rho
        self.coupling_seconds += time.perf_counter() - started
        for _, group, lists, _ in self._blocks("v", "x"):
            if lists:
                xa, g, v, x = lists
                eq_7a(xa, v, g, x, eta=group["lr"], rho=rho, mu=group["momentum"])
        started = time.perf_counter()
        slices = map(self._layout.slices, (self.x, mean))
        for (index, _), x, m in zip(self._layout.blocks, *slices, strict=True):
            eq_7b([x], [m], eta=self.param_groups[index]["lr"])
        if self._master is not None:
            self._layout.unpack(self._master)
        self._restart()
        self.coupling_seconds += time.perf_counter() - started

    def _take_weights(self):
        self._layout.pack(self.x)
        self._restart()

    def _restart(self):
        """x^a stands still until the next step: its mean travels during forward and backward."""
        if self._sent is not self._master:
            self._layout.pack(self._sent)
        self._mean.start(self._sent)

    def _newest_reference(self):
        self._mean.collect()  # leave nothing in flight behind a run's last validation
        return self.x

    def saved(self):
        """As FlatOptimizer's, with the live weights, x^a of (7a), which `_sent` is a copy of."""
        return {**super().saved(), "xa": (self._sent, "whole")}

    def _restore_weights(self):
        self._layout.unpack(self._sent)


class SGD(torch.optim.SGD):
    """torch.optim.SGD with Nesterov's momentum, under the names that the other optimisers have; the baseline.

    It is data-parallel over all ranks: the gradients are averaged before `step`, and nothing is coupled.
    """

    round_length = SGD_ROUND
    gamma = rho = None
    coupling_seconds = coupling_wait_seconds = 0.0
    coupling_bytes_sent = 0

    def __init__(self, params, *, lr, momentum=0.9, weight_decay=0.0):
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, foreach=True
        )

    def at_reference(self):
        """The live weights are the reference."""
        return nullcontext()

    def finish(self):
        """Nothing is ever under way."""

    def saved(self):
        """As FlatOptimizer's: the live weights, and the momentum where there is one yet."""
        params = [p for group in self.param_groups for p in group["params"]]
        momenta = [self.state[p].get("momentum_buffer") for p in params]
        found = {"x": (torch.cat([in_memory_order(p.detach()) for p in params]), "whole")}
        if all(m is not None for m in momenta):
            found["v"] = (torch.cat([in_memory_order(m) for m in momenta]), "whole")
        return found

    @torch.no_grad()
    def restore(self, saved, steps, groups):
        """As FlatOptimizer's."""
        params = [p for group in self.param_groups for p in group["params"]]
        sizes = [p.numel() for p in params]
        for p, values in zip(params, torch.split(torch.from_numpy(saved["x"]), sizes), strict=True):
            in_memory_order(p).copy_(values)
        if "v" in saved:
            for p, values in zip(params, torch.split(torch.from_numpy(saved["v"]), sizes), strict=True):
                self.state[p]["momentum_buffer"] = torch.empty_like(p)
                in_memory_order(self.state[p]["momentum_buffer"]).copy_(values)
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
