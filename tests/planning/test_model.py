"""The planner's formulas against closed forms."""

import math

import pytest

from parle_hpc.planning import model
from parle_hpc.planning.model import Link

LINK, FREE = Link(0.0, 2.0), Link(0.0, math.inf)


def test_a_ring_sends_each_rank_twice_all_but_its_own_part():
    for p in (1, 2, 3, 8):
        assert model.ring(p, 12.0, LINK) == pytest.approx(2 * (p - 1) / p * 12.0 / 2.0)
    assert model.ring(5, 0.0, Link(0.5, 1.0)) == 2 * 4 * 0.5


def test_halving_sends_as_much_in_fewer_messages_and_pays_for_ranks_beyond_a_power_of_two():
    for p in (2, 4, 64):
        assert model.halving(p, 12.0, LINK) == pytest.approx(model.ring(p, 12.0, LINK))
        assert model.halving(p, 0.0, Link(1.0, 1.0)) == 2 * math.log2(p)
    assert model.halving(3, 12.0, LINK) == pytest.approx((2 + 1) * 12.0 / 2.0)
    assert model.halving(1, 12.0, LINK) == 0


def test_parts_that_all_send_to_all_are_least():
    for n in (1, 2, 3):
        assert model.coupling(n, 1, 12.0, FREE, LINK) == pytest.approx(model.ring(n, 12.0, LINK))
    assert model.coupling(4, 1, 0.0, Link(9.0, 1.0), Link(1.0, 1.0)) == 2 * 3
    bytes_alone = Link(0.0, LINK.bandwidth)
    for n in (4, 8):
        least = model.ring(n, 12.0, bytes_alone)
        assert model.coupling(n, 1, 12.0, FREE, bytes_alone) == pytest.approx(model.OUT_OF_STEP * least)


def test_the_replicas_of_a_node_share_its_card():
    """Of two, each sends two others a quarter, twice."""
    assert model.coupling(4, 2, 12.0, FREE, LINK) == pytest.approx(2 * 2 * 2 / 4 * 6.0)
    assert model.coupling(4, 4, 12.0, LINK, FREE) == pytest.approx(2 * 4 * 3 / 4 * 6.0)


def test_gradients_go_round_inside_the_nodes_and_between_them():
    assert model.gradients(4, 8, 12.0, LINK, FREE) == pytest.approx(1.5 * 6.0)
    assert model.gradients(8, 4, 12.0, FREE, LINK) == pytest.approx(1.0 * 6.0)
    assert model.gradients(1, 4, 12.0, LINK, LINK) == 0


def test_a_coupling_is_hidden_as_long_as_the_mini_batches_take_and_waited_for_beyond():
    hidden = model.one_round(25, 0.1, 0.02, 2.0)
    assert (hidden.waited, hidden.hidden, hidden.seconds) == (0, 2.0, pytest.approx(3.0))
    assert hidden.utilisation == pytest.approx(2.5 / 3.0)
    over = model.one_round(25, 0.1, 0.02, 5.0, moves=0.5)
    assert (over.waited, over.hidden, over.seconds) == (pytest.approx(2.0), pytest.approx(3.0), pytest.approx(5.5))
    waited = model.one_round(25, 0.1, 0.0, 2.0, way="waited")
    assert (waited.waited, waited.seconds) == (2.0, pytest.approx(4.5))
    every_step = model.one_round(25, 0.1, 0.0, 0.3, way="step")
    assert every_step.seconds == pytest.approx(25 * 0.3)
    late = model.one_round(25, 0.1, 0.0, 2.0, late=0.4)
    assert (late.late, late.waited, late.seconds) == (0.4, 0, pytest.approx(2.9))


def test_where_gradients_and_mean_share_a_card_no_byte_is_sent_in_no_time():
    """The card is busy for all of both, and what does not fit beside mini-batches is waited for."""
    for travels in (0.5, 2.0, 50.0):
        shared = model.one_round(25, 0.1, 0.02, travels, shared=True)
        assert shared.seconds >= max(25 * 0.12, 25 * 0.02 + travels) - 1e-12
        assert shared.seconds <= 25 * 0.12 + travels
    # so much that both travel all the time
    assert shared.seconds == pytest.approx(25 * 0.02 + 50.0)


def test_gradients_leave_during_two_thirds_of_a_step_but_for_the_last_bucket():
    assert model.step(0.3, 0.1) == (0.3, 0.1)
    assert model.step(0.3, 0.1, last=0.01)[1] == 0.01
    assert model.step(0.3, 0.5, last=0.01)[1] == pytest.approx(0.5 - 0.2)


def test_the_expected_maximum_of_normal_numbers():
    exact = {1: 0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 10: 1.53875273, 100: 2.50759}
    for n, value in exact.items():
        assert model.expected_maximum(n) == pytest.approx(value, abs=2e-5)
    assert model.lateness(2, 25, 0.1, 0.2) == pytest.approx(0.2 * 0.1 * 5 / math.sqrt(math.pi), rel=1e-4)


def test_what_a_checkpoint_and_a_failure_cost():
    assert model.with_checkpoints(1000.0, 100.0, 1.0, 50.0) == pytest.approx(1010.0)
    assert model.with_checkpoints(1000.0, 100.0, 1.0, 150.0) == pytest.approx(1510.0)
    assert model.with_failures(1000.0, 100.0, 10.0, 4, 8000.0) == pytest.approx(1030.0)
    # where the derivative of waits / every + every / 2 / between is 0
    assert model.best_interval(2.0, 4, 800.0) == pytest.approx(math.sqrt(2 * 2.0 * 200.0))
