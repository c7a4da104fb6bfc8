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
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from ..coupling.choice import PAYLOADS, reference_over
from ..coupling.posting import Membership
from ..equations import eq_8a, eq_8b, eq_8c, eq_8d_free, eq_9
from .flat_state import require
from .pace import Paced

GAMMA_CLIP, RHO_CLIP = 1.0, 0.1  # section 3.1
REFERENCES = ("current", "lagged", "average")
INSIDE = ("gradients", "workers")


class Parle(Paced):
    """Parle, (8a)-(8d) with (9): Entropy-SGD in each replica, coupled to the mean of the replicas every L steps.

    Args:
        params: parameters or parameter groups; lr, momentum, weight_decay and inner_lr may differ by group.
        lr: eta of (8c), annealed by torch's schedulers; a warm-up of it does not reach eta'.
        momentum: mu, Nesterov's, for y and x^a (Remark 2).
        L: inner steps (mini-batches) in a round.
        alpha: of (8b), in [0, 1).
        gamma0, rho0: gamma and rho at the start, (9). rho0 = inf: no elastic term and no traffic.
        batches_per_epoch: B of (9), mini-batches in one pass over what the replica sees.
        inner_lr: eta' of (8a), never annealed; where None the lr given here, which must be above 0.
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
        pace: "steps": every replica makes L inner steps a round; "time": replica a makes L_a of them, between L/2 and
            2 L by its measured speed, `steps_in_round`, so that fast replicas do not wait for slow ones. t of (9)
            counts rounds, and schedules `nominal_steps`. `at_reference` at the ends of rounds alone.
        payload: what travels between the replicas: "full", the state's own type, or "bfloat16", half of it, with error
            feedback (coupling.compressed), which keeps 1 + 1/n shares more and rounds x in (8c). The
            reference of `at_reference` is exact either way. The constructor is then collective over `comm`.
        inner: takes parameter groups, dicts with "params", and gives the torch optimiser that makes the inner step,
            `optimizer.inner`, such as partial(torch.optim.AdamW, lr=1e-3): its own on grad f, then
            y <- y - (eta'/gamma) (y - x^a), where eta' is its present rate. eta, `lr`, is then another thing than eta':
            under 1, and rho is clipped at eta / (1 - eta) where that is above 0.1, so that (8c) does not overshoot.
            Weight decay is the inner one's. None: (8a) with momentum.
        eta2: eta'' of (8d), where it is not rho_t/n, which makes x the mean (section 3.1). x is then a state of its
            own, which goes a part of the way, eta'' n/rho_t, to what `reference` says: to this round's mean of x^a
            before (8c) ("current") or after it ("lagged"), or to that of z before it ("average"). Stable on its own
            only while that part is under 2, and rho falls to 0.1.
        mu2: with eta2, Nesterov's momentum of x (Remark 2).
        mailbox: coupling.posting.Membership, where the other replicas are jobs of their own (Remark 3), in place of
            `comm`; with reference="current" alone, in full, and without eta2.
        gather: what puts the shares of a replica's ranks together, such as Topology.gather, which is NCCL where there
            is one; None: MPI, through the host's memory.

    Raises ValueError for a setting out of range. `step` and `at_reference` raise Disagreement where the ranks that are
    coupled have other settings, another network, or are not at the same place of the same script.
    """

    flat_names: tuple[str, ...] = ("x", "z", "v_y", "v_x")
    share_names = ("z", "v_x")
    z: torch.Tensor
    v_y: torch.Tensor
    v_x: torch.Tensor

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        L: int = 25,
        alpha: float = 0.75,
        gamma0: float = 100.0,
        rho0: float = 1.0,
        batches_per_epoch: int,
        inner_lr: float | None = None,
        weight_decay: float = 0.0,
        reference: str = "current",
        comm: Any = None,
        replica: Any = None,
        inside: str = "gradients",
        pace: str = "steps",
        payload: str = "full",
        inner: Callable[..., torch.optim.Optimizer] | None = None,
        gather: Callable[..., None] | None = None,
        eta2: float | None = None,
        mu2: float = 0.0,
        mailbox: Membership | None = None,
    ) -> None:
        require(0 <= alpha < 1, "alpha", alpha, "in [0, 1)")
        require(gamma0 > 0, "gamma0", gamma0, "above 0")
        require(rho0 > 0, "rho0", rho0, "above 0")
        require(batches_per_epoch >= 1, "batches_per_epoch", batches_per_epoch, "at least 1")
        require(inner_lr is None or inner_lr >= 0, "inner_lr", inner_lr, "at least 0")
        require(reference in REFERENCES, "reference", reference, f"one of {', '.join(REFERENCES)}")
        require(inside in INSIDE, "inside", inside, f"one of {', '.join(INSIDE)}")
        require(pace != "time" or math.isfinite(rho0), "pace", pace, "'steps' where rho0 is inf: nothing is coupled")
        require(payload in PAYLOADS, "payload", payload, f"one of {', '.join(PAYLOADS)}")
        require(inside == "gradients" or replica is not None, "replica", replica, "a communicator for inside='workers'")
        if eta2 is not None:
            require(eta2 > 0 and math.isfinite(rho0), "eta2", eta2, "above 0, and left out where rho0 is inf")
        require(0 <= mu2 < 1, "mu2", mu2, "in [0, 1)")
        require(mu2 == 0 or eta2 is not None, "mu2", mu2, "0 where there is no eta2: the mean has no dynamics")
        if mailbox is not None:
            require(comm is None or comm.Get_size() == 1, "comm", comm, "left out where there is a mailbox")
            require(reference == "current", "reference", reference, "current where there is a mailbox")
            require(pace == "steps", "pace", pace, "steps where there is a mailbox")
            require(
                payload == "full" and eta2 is None, "payload", payload, "full, without eta2, where there is a mailbox"
            )
        if inner is not None:
            require(inner_lr is None, "inner_lr", inner_lr, "left out where inner has a rate of its own")
            require(weight_decay == 0, "weight_decay", weight_decay, "left out: it is the inner optimiser's")
            require(rho0 == math.inf or lr < 1, "lr", lr, "under 1 with inner, where it is eta of (8c) alone")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "inner_lr": inner_lr}
        divided = inside == "gradients"
        ranks = {"comm": comm, "replica": replica, "divided": divided, "gather": gather}
        super().__init__(params, defaults, pace=pace, L=L, inner=inner, **ranks)
        for group in self.param_groups:
            if group["inner_lr"] is None and inner is None:
                # a scheduler that anneals a tensor in place must not reach this one
                group["inner_lr"] = rate = float(group["lr"])
                require(rate > 0, "lr", lr, "above 0 where inner_lr, which never changes, is not given")
        self.alpha, self.B = alpha, batches_per_epoch
        self.gamma0, self.rho0, self.reference, self.inside = gamma0, rho0, reference, inside
        self._payload, self.eta2, self.mu2, self._mailbox = payload, eta2, mu2, mailbox
        self._elastic = math.isfinite(rho0)
        self._rho_clip = RHO_CLIP
        if inner is not None and self._elastic:
            self._rho_clip = max(RHO_CLIP, *(g["lr"] / (1 - g["lr"]) for g in self.param_groups))
        if eta2 is not None:
            self.x8d, self.v8d = (self._layout.zeros(share=True) for _ in range(2))
        elif reference == "lagged" and self._elastic:
            self.lagged = self._layout.zeros(share=True)
        self._set_terms(
            (reference, inside, payload, self._inner and self._inner.name, pace),
            **{"L": L, "alpha": alpha, "gamma0": gamma0, "rho0": rho0, "batches_per_epoch": batches_per_epoch},
            **{"eta2": eta2 or 0.0, "mu2": mu2, "the number of ranks in a replica": self._m},
        )
        self._make_mean()
        self._deputy = reference_over(replica, self.z, terms=self._terms) if inside == "workers" else None

    def _make_mean(self):
        # with one replica x^a is its own mean, so only the other two references have something to keep
        alone = self._comm is None and not self._elastic
        me, shares = weakref.ref(self), self._layout.shares if self._divided else None
        mailbox = self._mailbox and (self._mailbox, self.x, shares, lambda: (me().t, 0))
        own = self.x[self._mine]
        self._mean = None if alone else reference_over(self._comm, own, self._payload, self._terms, mailbox)
        self._mean_of_x = False

    @property
    def gamma(self) -> float:
        """gamma_t of this round, (9)."""
        return eq_9(self.gamma0, self.t, self.B, clip=GAMMA_CLIP)

    @property
    def rho(self) -> float:
        """rho_t of this round, (9)."""
        return eq_9(self.rho0, self.t, self.B, clip=self._rho_clip)

    def _references(self):
        return [reference for reference in (self._mean, self._deputy) if reference is not None]

    def _inner_step(self):
        gamma = self.gamma
        for i, group, lists, weights in self._blocks("v_y", "x"):
            if lists:
                y, g, v, xa = lists
                eq_8a(y, v, g, xa, eta=group["inner_lr"], gamma=gamma, mu=group["momentum"])
            self._moved(i, weights)

    def _moved(self, i, weights):
        z = self._runs["z"][i]
        if z:
            eq_8b(z, self._layout.of_share(i, weights), alpha=self.alpha)

    def _move(self):
        z = self.z
        if self._deputy is not None:
            self._deputy.start(self.z)
            z = self._deputy.collect()
        x, rho = self._reference_of_this_round(z), self.rho
        if self.pace == "time":
            self._hear(self._mean.told)
        slices = map(self._layout.slices, (self.x[self._mine], self.v_x, z, x))
        for (index, _), *parts in zip(self._layout.blocks, *slices, strict=True):
            if parts[0] is not None:
                group = self.param_groups[index]
                eq_8c(*([part] for part in parts), eta=group["lr"], rho=rho, mu=group["momentum"])
        self._put_together()
        if hasattr(self, "lagged"):
            self.lagged.copy_(self._own_where_taken(self._mean.collect(), self.x[self._mine]))

    def _take_over(self, changed, live):
        torch.where(changed, live, self.x, out=self.x)
        mine = changed[self._mine]
        torch.where(mine, live[self._mine], self.z, out=self.z)
        self.v_x.masked_fill_(mine, 0)
        if self.eta2 is not None:
            torch.where(mine, live[self._mine], self.x8d, out=self.x8d)
            self.v8d.masked_fill_(mine, 0)
        self._take(changed, self._mine)

    def _reference_of_this_round(self, z):
        if not self._elastic:
            return self.x[self._mine]
        if self.reference == "average":
            self._mean_of_x = False
            self._mean.start(z)
            newest = self._mean.collect()
        else:
            # also where `lagged` does not need it yet: the mean that is under way belongs to this round
            newest = self._own_where_taken(self._mean.collect(), self.x[self._mine])
        if self.eta2 is not None:
            before = self.x8d.clone() if self.reference == "lagged" else self.x8d
            self._follow(self.x8d, self.v8d, newest)
            return before
        return self._own_where_taken(self.lagged, self.x[self._mine]) if self.reference == "lagged" else newest

    def _follow(self, x, v, mean):
        """(8d) with a free eta''."""
        eq_8d_free([x], [v], [mean], eta=self.eta2, rho=self.rho, n=self._of_replica()[1], mu=self.mu2)

    def _take_weights(self):
        self._layout.pack(self.x)
        self.z.copy_(self.x[self._mine])
        for name in ("lagged", "x8d"):
            if hasattr(self, name):
                getattr(self, name).copy_(self.x[self._mine])
        if self._mean is not None:
            self._mean.reset(self.x[self._mine])
        self._restart()

    def _restart(self):
        """x^a stands still until the next coupling: its mean may travel from now on."""
        self._taken = None
        if self._mean is not None:
            self._mean_of_x = self._elastic and self.reference != "average"
            if self._mean_of_x:
                self._mean.start(self.x[self._mine])

    def _newest_reference(self):
        if self._mean is None:
            return self.x
        mine = self.x[self._mine]
        mean = self._mean.exact(mine, started=self._mean_of_x)
        if self._mean_of_x and not self._mean.fresh:
            mean = self._own_where_taken(mean, mine)
        if self.eta2 is not None:
            # as the next coupling will
            moved = self.x8d.clone()
            self._follow(moved, self.v8d.clone(), mean)
            mean = moved
        return self.gathered(mean)

    @property
    def _ranks_differ(self):
        return self._deputy is not None

    def _kind(self, name, flat):
        workers_own = self._ranks_differ and name in ("z", "v_y")
        return "own" if workers_own or name == "payload_e" else super()._kind(name, flat)

    def _begin_to_tell(self, found):
        if self._mean is not None and not self._mean.state.keys() <= found.keys():
            self._mean.reset(self.x[self._mine])

    def _flat_state(self):
        state = super()._flat_state()
        for name in ("lagged", "x8d", "v8d"):
            if hasattr(self, name):
                state[name] = getattr(self, name)
        return state | (self._mean.state if self._mean is not None else {})
