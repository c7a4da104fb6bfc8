"""Rounds of as many steps as each replica's speed allows, by a clock of the test's own."""

import copy
import threading
import time

import numpy as np
import pytest
import torch
from helpers import replicas
from helpers.problems import flat, parameters, problem, set_gradients

from parle_hpc import Parle
from parle_hpc.algorithms import pace
from parle_hpc.algorithms.pace import lengths_of

L, FIRST = 10, 3  # the round, from 0, that has the first lengths by measured speeds
OF = problem("quadratic")
EQUAL, UNEQUAL = (1.0, 1.0), (1.0, 3.0)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock for each thread, which stands still but where its replica makes a step."""
    now = threading.local()
    monkeypatch.setattr(pace, "moment", lambda device: getattr(now, "seconds", 0.0))
    return now


def made(params, comm=None, **settings):
    settings = {"lr": 0.1, "L": L, "batches_per_epoch": 5, "comm": comm, **settings}
    return Parle(params, **{"pace": "time", **settings})


def walk(optimizer, params, a, rounds, clock, seconds):
    """Whole rounds of replica a; [(steps, t, eta at the coupling, reference) of each]."""
    scheduler, told = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99), []
    for _ in range(rounds):
        for _ in range(optimizer.steps_in_round):
            clock.seconds = getattr(clock, "seconds", 0.0) + seconds
            set_gradients(params, OF.grad(a, optimizer.steps, flat(params)))
            before, eta, nominal = optimizer.steps, optimizer.param_groups[0]["lr"], optimizer.nominal_steps
            optimizer.step()
            for _ in range(optimizer.nominal_steps - nominal):
                scheduler.step()
            clock.seconds += 0.0 if optimizer.progress[1] else 1000.0  # a validation, or a wait, is nobody's speed
        assert optimizer.progress == (optimizer.t, 0)
        assert optimizer.nominal_steps == optimizer.t * L
        with optimizer.at_reference():
            told.append((before + 1, optimizer.t, eta, flat(params)))
    return told


def trained(clock, speeds, rounds=6, **settings):
    """What `walk` told of each replica, and the optimisers."""

    def replica(a, comm):
        params = parameters(OF)
        optimizer = made(params, comm, **settings)
        return walk(optimizer, params, a, rounds, clock, speeds[a]), optimizer

    return zip(*replicas.run(len(speeds), replica), strict=True)


@pytest.mark.parametrize(
    ("seconds", "lengths"),
    [
        ([0.2, 0.2], [25, 25]),
        ([0.1, 0.3], [38, 13]),  # 37.5 and 12.5: in the time of 12.5 slow ones
        ([1.0, 2.0, 4.0], [43, 21, 13]),  # 42.9, 21.4 and 10.7
        ([0.1, 10.0], [50, 13]),
        ([0.1, 1.0, 1.0, 1.0], [50, 13, 13, 13]),
        ([0.1, 0.0], [25, 25]),  # of one nothing is known yet
        ([0.1, float("nan")], [25, 25]),
        ([], []),
    ],
)
def test_lengths_are_as_the_speeds_between_half_and_twice_l(seconds, lengths):
    assert lengths_of(seconds, 25) == lengths


WAYS = ({}, {"payload": "bfloat16"}, {"reference": "lagged"}, {"reference": "average"}, {"eta2": 0.1})


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_replicas_of_one_speed_are_those_of_pace_steps_to_the_bit(way, clock):
    (mine, _), (theirs, _) = (trained(clock, EQUAL, pace=each, **way) for each in ("time", "steps"))
    for one, other in zip(mine, theirs, strict=True):
        assert [told[:3] for told in one] == [told[:3] for told in other]
        assert all(np.array_equal(a[3], b[3]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_slow_replica_makes_fewer_steps_and_couples_as_often(way, clock):
    rounds = FIRST + 3
    (fast, slow), (optimizer, _) = trained(clock, UNEQUAL, rounds, **way)
    # `average` has its message at the coupling itself, and so a round earlier
    equal = FIRST - 1 if way == {"reference": "average"} else FIRST
    for told, length in ((fast, 15), (slow, 5)):
        lengths = np.diff([0, *(steps for steps, *_ in told)])
        assert lengths.tolist() == [L] * equal + [length] * (rounds - equal)
    for mine, theirs in zip(fast, slow, strict=True):
        assert mine[1:3] == theirs[1:3]  # t, and eta of (8c)
        assert np.array_equal(mine[3], theirs[3])
    assert optimizer.lengths == [15, 5]
    assert optimizer.gamma == max(1.0, 100.0 * (1 - 1 / 10) ** rounds)


def test_one_slow_round_changes_a_length_by_half_as_much_as_it_would(clock):
    def replica(a, comm):
        params = parameters(OF)
        optimizer = made(params, comm)
        walk(optimizer, params, a, 5, clock, 1.0)
        walk(optimizer, params, a, 1, clock, 1.0 + 2.0 * a)
        walk(optimizer, params, a, 2, clock, 1.0)
        return optimizer.lengths

    # s is 1 and (1 + 3)/2
    assert replicas.run(2, replica)[0] == lengths_of([1.0, 2.0], L) == [13, 7]


def test_a_state_from_the_middle_of_a_round_goes_on(clock):
    def replica(a, comm):
        params = parameters(OF)
        optimizer = made(params, comm)
        walk(optimizer, params, a, FIRST + 1, clock, UNEQUAL[a])
        for _ in range(3):
            set_gradients(params, OF.grad(a, optimizer.steps, flat(params)))
            optimizer.step()
        others = parameters(OF)
        again = made(others, comm)
        state, weights = optimizer.state_dict(), [p.detach().clone() for p in params]
        paths = []
        for o, mine in ((again, others), (optimizer, params)):
            o.load_state_dict(state)
            for p, w in zip(mine, weights, strict=True):
                p.data.copy_(w)
            while o.progress != (FIRST + 3, 0):
                set_gradients(mine, OF.grad(a, o.steps, flat(mine)))
                o.step()
            paths.append((o.steps, flat(mine)))
            o.finish()
        (steps, one), (same, other) = paths
        assert steps == same
        assert np.array_equal(one, other)
        return optimizer.steps

    # its lengths hold until there are new ones, of a clock that stood still here
    fast, slow = replicas.run(2, replica)
    assert fast - slow == 3 * (15 - 5)


def test_a_state_that_is_kept_does_not_go_on_with_the_optimiser(clock):
    params = parameters(OF)
    optimizer = made(params)
    walk(optimizer, params, 0, 1, clock, 1.0)
    walk(optimizer, params, 0, 1, clock, 2.0)
    # as a checkpoint is written, while the run goes on
    groups = [dict(group) for group in optimizer.param_groups]
    before = copy.deepcopy(groups[0][pace.STATE])
    walk(optimizer, params, 0, 1, clock, 1.0)
    assert groups[0][pace.STATE] == before != optimizer.param_groups[0][pace.STATE]


def test_a_state_of_the_other_pace_is_refused():
    params = parameters(OF)
    for mine, other in (("time", "steps"), ("steps", "time")):
        with pytest.raises(ValueError, match=f"pace is '{mine}'; it must be '{other}', as of the state"):
            made(params, pace=mine).load_state_dict(made(parameters(OF), pace=other).state_dict())


@pytest.mark.parametrize(("name", "value"), [("L", 3), ("rho0", float("inf")), ("pace", "clock")])
def test_what_cannot_be_paced_is_refused(name, value):
    with pytest.raises(ValueError, match="pace"):
        made(parameters(OF), **{name: value})


def test_seconds_of_a_step_are_measured_without_what_lies_between_rounds(monkeypatch):
    monkeypatch.undo()
    params = parameters(OF)
    optimizer = made(params, L=4)
    for _ in range(2):
        for _ in range(4):
            time.sleep(0.005)
            set_gradients(params, np.zeros(10))
            optimizer.step()
        started = time.perf_counter()
        time.sleep(0.2)
    assert 0.005 <= optimizer.param_groups[0][pace.STATE]["seconds"] < (time.perf_counter() - started) / 2
