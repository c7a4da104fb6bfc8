"""The learning rates of each step."""

import math
from functools import partial

import pytest
import torch

from parle_hpc import Parle
from parle_hpc.algorithms.inners import INNERS
from parle_hpc.settings import Schedule as Section
from parle_hpc.training.schedule import Schedule

STEPS, EPOCH = 40, 10


def optimizer(**given):
    layer = torch.nn.Linear(3, 2)
    return Parle(layer.parameters(), lr=0.5, L=10**6, batches_per_epoch=9, **given)


def rates(mine, schedule, of, steps=STEPS):
    found = []
    for _ in range(steps):
        found.append(of.param_groups[0]["lr"])
        for p in mine._layout.params:
            p.grad = torch.ones_like(p)
        mine.step()
        schedule.step()
    return found


def test_drops_are_torchs():
    mine, theirs = optimizer(), optimizer()
    schedule = Schedule(mine, None, Section(drops=[1, 2.5]), EPOCH, STEPS)
    torchs = torch.optim.lr_scheduler.MultiStepLR(theirs, [10, 25], gamma=1 / 10)
    assert rates(mine, schedule, mine) == rates(theirs, torchs, theirs)


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("kind", ["drops", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.4])
def test_its_closed_form(kind, warmup, also):
    inner = partial(INNERS["adamw"], lr=0.01, weight_decay=0.0)
    mine = optimizer(inner=inner)
    section = Section(kind=kind, warmup=warmup, drops=[2], least=0.1, inner=also)
    schedule = Schedule(mine, mine.inner if also else None, section, EPOCH, STEPS)

    def right(k):
        first = round(warmup * EPOCH)
        if k < first:
            return (k + 1) / first
        if kind == "drops":
            return 1.0 if k < 20 else 0.1
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (k - first) / (STEPS - first)))

    eta_prime = mine.inner.param_groups[0]
    before = eta_prime["lr"]
    found = rates(mine, schedule, mine)
    assert found == pytest.approx([0.5 * right(k) for k in range(STEPS)], rel=1e-12)
    assert before == pytest.approx(0.01 * (right(0) if also else 1))
    assert eta_prime["lr"] == pytest.approx(0.01 * (after(kind, right) if also else 1))


def after(kind, right):
    """The factor after the last step."""
    return right(STEPS) if kind == "drops" else 0.1


def test_it_goes_on_where_it_was():
    section = Section(kind="cosine", warmup=0.3)
    mine, other = optimizer(), optimizer()
    whole = rates(mine, Schedule(mine, None, section, EPOCH, STEPS), mine)
    first = Schedule(other, None, section, EPOCH, STEPS)
    rates(other, first, other, 15)
    again = optimizer()
    schedule = Schedule(again, None, section, EPOCH, STEPS)
    again.param_groups[0]["lr"] = other.param_groups[0]["lr"]
    assert first.state_dict() == {"step": 15}
    schedule.load_state_dict(first.state_dict())
    assert rates(again, schedule, again, STEPS - 15) == whole[15:]


def test_eta_may_stay_while_the_inner_rate_goes():
    mine = optimizer(inner=partial(INNERS["adamw"], lr=0.1, weight_decay=0.0))
    section = Section(kind="cosine", warmup=0.5, least=0.1, inner=True, outer=False)
    schedule = Schedule(mine, mine.inner, section, EPOCH, STEPS)
    inner = []
    for eta in rates(mine, Recording(schedule, mine.inner, inner), mine):
        assert eta == 0.5
    assert inner[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert min(inner) == inner[-1] == pytest.approx(0.01, rel=0.1)
    assert schedule.state_dict() == {"step": STEPS}


class Recording:
    """A schedule that notes the rates of another optimiser before each step."""

    def __init__(self, schedule, of, found):
        self._schedule, self._of, self._found = schedule, of, found

    def step(self):
        self._found.append(self._of.param_groups[0]["lr"])
        self._schedule.step()
