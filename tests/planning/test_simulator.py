"""The simulator: the closed form where there is one, and what must hold where there is none."""

import numpy as np
import pytest

from parle_hpc.planning import model
from parle_hpc.planning.simulator import Scenario, simulate


@pytest.mark.parametrize("way", ["hidden", "waited"])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("travels", [0.0, 0.7, 3.1])
def test_without_noise_it_is_the_closed_form(n, travels, way):
    found = simulate(Scenario(n, 20, 25, 0.1, travels=travels, moves=0.013, way=way))
    expected = model.one_round(25, 0.1, 0.0, travels, 0.013, way)
    assert found.seconds == pytest.approx(20 * expected.seconds, rel=1e-9)
    assert found.utilisation == pytest.approx(expected.utilisation, rel=1e-9)


def test_chance_lies_between_the_mean_and_the_expected_maximum():
    """Who waits at each coupling waits for the slowest; who may be a round ahead waits for less, but for something."""
    n, L, noise = 32, 25, 0.2
    scenario = Scenario(n, 300, L, 0.1, noise=noise, travels=0.5, way="waited")
    late = model.lateness(n, L, 0.1, noise)
    waited = simulate(scenario).seconds / 300 - 3.0
    assert waited == pytest.approx(late, rel=0.05)
    hidden = simulate(Scenario(n, 300, L, 0.1, noise=noise, travels=0.5)).seconds / 300 - 2.5
    assert 0 < hidden < 0.9 * waited


def test_one_slow_node_holds_all_unless_they_keep_pace_by_time():
    slow = {"slow": {3: 1.6}, "travels": 0.5}
    assert simulate(Scenario(8, 50, 20, 0.1, **slow)).seconds == pytest.approx(50 * 3.2)
    paced = simulate(Scenario(8, 50, 20, 0.1, pace="time", **slow))
    assert paced.steps.tolist() == [20, 20, 20, 12, 20, 20, 20, 20]
    assert paced.seconds == pytest.approx(50 * 2.0)
    bounds = simulate(Scenario(3, 1, 20, 0.1, pace="time", slow={0: 9.0, 2: 0.1})).steps
    assert bounds.tolist() == [10, 20, 40]


def test_a_job_that_loses_a_node_goes_on_from_its_last_checkpoint():
    calm = Scenario(4, 200, 10, 0.1, checkpoint=20, restart=5.0)
    hit = simulate(Scenario(4, 200, 10, 0.1, checkpoint=20, restart=5.0, between=400.0))
    assert hit.failures > 0
    lost = hit.seconds - simulate(calm).seconds
    # a failure costs the restart, and at most what lies between two checkpoints
    assert 5.0 * hit.failures <= lost <= (5.0 + 20) * hit.failures


def test_by_mailbox_nobody_waits_for_a_slow_or_dead_one_and_values_are_as_old_as_they_are():
    equal = simulate(Scenario(4, 50, 10, 0.1, way="mailbox", write=0.001))
    # what nobody waits for: in a round of 1 s the file system is busy for 4 x 4 x 1 ms
    assert equal.seconds == pytest.approx(50.0)
    assert 0 < equal.age < 1
    slow = simulate(Scenario(4, 50, 10, 0.1, way="mailbox", write=0.001, slow={0: 3.0}))
    assert slow.seconds == pytest.approx(150.0)
    assert slow.age > equal.age
    # without a checkpoint it begins anew, which costs more than the round in which it died
    dying = simulate(Scenario(1, 20, 10, 0.1, way="mailbox", between=15.0))
    assert dying.failures > 0
    assert dying.seconds > 20 + dying.failures
    # a file system that is too slow is waited for by all
    full = simulate(Scenario(4, 50, 10, 0.1, way="mailbox", write=0.125))
    assert full.seconds == pytest.approx(50 * 4 * 4 * 0.125, rel=0.05)


def test_the_same_seed_is_the_same_run():
    scenario = Scenario(8, 20, 25, 0.1, noise=0.1, travels=2.0)
    assert simulate(scenario).seconds == simulate(scenario).seconds
    assert np.isfinite(simulate(scenario).utilisation)
