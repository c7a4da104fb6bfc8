"""Who can go on, and who cannot, from what ranks have told of themselves."""

import pytest

from parle_hpc.cluster import waiting as waiting_room
from parle_hpc.cluster.lookout import State, cannot_go_on, in_words
from parle_hpc.cluster.waiting import Call, Wait


def waiting(kind, members, number, **calls):
    """A rank in a call, after `calls` of other kinds, {kind: (members, number)}."""
    come = {(kind, members): number} | {(name, ranks): done for name, (ranks, done) in calls.items()}
    return State(Wait(0, f"the other ranks in {kind}", Call(kind, members, number), 0.0), come)


def at_the_end(**calls):
    return State(None, {(name, ranks): done for name, (ranks, done) in calls.items()})


ALL, PAIR = (0, 1, 2), (0, 1)


@pytest.mark.parametrize(
    ("states", "stuck"),
    [
        ({}, set()),
        # a slow one may still come
        ({0: waiting("a", ALL, 1), 1: waiting("a", ALL, 1)}, set()),
        # all are there: the network is slow
        ({0: waiting("a", PAIR, 1), 1: waiting("a", PAIR, 1)}, set()),
        ({0: waiting("a", PAIR, 1), 1: waiting("b", PAIR, 1)}, {0, 1}),
        ({0: waiting("a", PAIR, 2), 1: waiting("b", PAIR, 1, a=(PAIR, 1))}, {0, 1}),
        # what 0 waits for 1 has done its part of, as of a mean that travels
        ({0: waiting("a", PAIR, 2), 1: waiting("b", PAIR, 1, a=(PAIR, 2))}, set()),
        ({0: waiting("a", PAIR, 1), 1: at_the_end()}, {0}),
        ({0: waiting("a", PAIR, 1), 1: at_the_end(a=(PAIR, 1))}, set()),
        ({0: at_the_end(), 1: at_the_end()}, set()),
        # 0 waits for 1, and 1 for 2, which may come
        ({0: waiting("a", PAIR, 1), 1: waiting("b", (1, 2), 1)}, set()),
        ({0: waiting("a", PAIR, 1), 1: waiting("b", (1, 2), 1), 2: at_the_end()}, {0, 1}),
        # nothing is known of what 1 waits for
        ({0: waiting("a", PAIR, 1), 1: State(Wait(0, "the disk", None, 0.0), {})}, set()),
    ],
)
def test_ranks_that_nobody_can_set_free(states, stuck):
    assert cannot_go_on(states) == stuck


def test_patience_ends_with_what_was_waited_for_and_claims_no_death(monkeypatch):
    monkeypatch.setattr(waiting_room, "_patience", 0.1)
    with pytest.raises(TimeoutError, match="waited 0 s for the bus; another rank has not come to it") as raised:
        waiting_room.wait_for(lambda: False, "the bus")
    assert "dead" not in str(raised.value)


def test_the_line_names_everyone_who_is_waited_for():
    states = {
        0: waiting("a", ALL, 2),
        1: waiting("a", ALL, 2),
        2: at_the_end(a=(ALL, 1)),
    }
    assert in_words(states, {0, 1}) == (
        "no rank can go on: ranks 0, 1 waiting for the other ranks in a (number 2); rank 2 at the end of the script; "
        "every rank must call the same functions, equally often"
    )
