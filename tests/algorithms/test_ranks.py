"""n x m ranks under a real mpirun, one start for each shape: groups, the oracle, shares and traffic, validation."""

import json
import os

import numpy as np
import pytest
from helpers.mpi import pass_in_turn

pytestmark = pytest.mark.cluster

QUADRATIC = ("quadratic", "gradients", "current", "lagged", "average")
LENET = ("lenet", "gradients", "current")
WORKERS = ("quadratic", "workers", "current")
ELASTIC = ("quadratic", "elastic", "scoping", "plain")
RIVALS = ("quadratic", "rival", "diloco", "overlap", "local_sgd")
ORACLE = {
    (1, 1): (QUADRATIC,),
    (2, 1): (QUADRATIC, LENET, ELASTIC, RIVALS),
    (3, 1): (QUADRATIC, ELASTIC),
    (1, 2): (QUADRATIC, LENET, WORKERS),
    (2, 2): (QUADRATIC, LENET, WORKERS, ELASTIC, RIVALS),
}
SHARDED = ((2, 1), (3, 1), (2, 2), (1, 4))
VALIDATED = ((1, 1), (2, 1), (3, 1))
SHAPES = (*ORACLE, (1, 3), (1, 4))


@pytest.fixture(scope="module")
def printed(digits, tmp_path_factory):
    """A function (shape, name of a program and its arguments but for the replicas) -> what it printed on that shape."""
    folder, started = tmp_path_factory.mktemp("ranks"), {}

    def start(shape):
        n, m = shape
        commands = {("groups",): ("groups.py", n)}
        commands |= {("oracle", *case): ("against_oracle.py", n, *case) for case in ORACLE.get(shape, ())}
        if shape in SHARDED:
            commands["sharded",] = ("sharded.py", n)
        if shape in VALIDATED:
            commands["validates",] = ("validates.py", digits, folder / f"{n}.npz")
        if m > 1:
            commands["buckets",] = ("buckets.py", n)
        if shape == (2, 1):
            commands["travels",] = ("travels.py",)
        return dict(zip(commands, pass_in_turn(n * m, *commands.values()), strict=True))

    def get(shape, *name):
        if shape not in started:
            started[shape] = start(shape)
        return folder / f"{shape[0]}.npz" if name == ("validates",) else started[shape][name]

    return get


@pytest.mark.parametrize("shape", SHAPES)
def test_groups_gradients_and_broadcast(printed, shape):
    (n, m), everyone = shape, json.loads(printed(shape, "groups"))
    assert len(everyone) == n * m
    for rank, seen in enumerate(everyone):
        group = list(range(rank // m * m, rank // m * m + m))
        mean = sum(group) / m
        assert (seen["replica_index"], seen["place"]) == divmod(rank, m)
        assert seen["replica"] == group
        assert seen["cross"] == list(range(rank % m, n * m, m))
        assert seen["gradients"] == [[mean], [10 * mean], None]
        assert seen["broadcast"] == [[0.0], [0.0], [1.0], [0.0]]
        assert seen["threads"] == max(1, int(len(os.sched_getaffinity(0)) / (n * m) + 1e-9))


@pytest.mark.parametrize(("shape", "case"), [(shape, case) for shape, cases in ORACLE.items() for case in cases])
def test_many_ranks_are_one_process(printed, shape, case):
    assert printed(shape, "oracle", *case).split() == list(case[2:])


@pytest.mark.parametrize("shape", [(n, m) for n, m in SHAPES if m > 1])
def test_buckets_have_the_same_bits_whenever_they_are_sent(printed, shape):
    (_, m), everyone = shape, json.loads(printed(shape, "buckets"))
    for place, (found, missing, refused) in enumerate(everyone):
        assert len(found) == 1
        assert found.keys() == everyone[place // m * m][0].keys()
        # sums of two do not know an order
        assert max(missing, *found.values()) <= (0 if m == 2 else 1e-6)
        assert ["have changed since" in line for line in refused] == [True, True, False]
        assert refused[2].endswith("comes average_gradients, of the same parameters")


WAYS = (
    "hidden, sharded",
    "hidden, sharded, gathered by Horovod",
    "hidden, whole",
    "blocking, sharded",
    "blocking, whole",
)


@pytest.mark.parametrize("shape", SHARDED)
def test_hidden_or_sharded_no_bit_changes_and_each_rank_holds_and_sends_its_share(printed, shape):
    n, m = shape
    for case, ranks in json.loads(printed(shape, "sharded")).items():
        reference, payload = case.split()
        assert len(ranks) == n * m
        for digests, counted in ranks:
            # all ranks of the replica, all ways
            assert len({digest for rank in digests for digest in rank}) == 1
            assert set(counted) == set(WAYS)
        extra = 3 + (reference == "lagged")
        compressed = payload == "bfloat16" and n > 1
        for name in WAYS:
            N, sharded = ranks[0][1][name]["N"], "sharded" in name
            share = -(-N // m) if sharded else N
            states = [counted[name]["state_floats"] for _, counted in ranks]
            # 2 + 3/m floats per parameter, `lagged` one share more; the last rank's share is what is left of N
            part = -(-share // n)
            if compressed:
                # three numbers of each replica travel behind a mean, each as two halves
                behind = (6 * n + 6) / 2
                # h, its part of e and of the sum, and in two bytes each what is sent, what arrives and what is told
                assert max(states) == 2 * N + (extra + 1) * share + 2 * part + (2 * n * part + part) / 2 + behind
            else:
                # what arrives, and three numbers of each replica; the mean is as long as n parts
                behind = (n * part + 3 * n + n * part - share) * (n > 1)
                assert max(states) == 2 * N + extra * share + behind
            sent = [counted[name]["bytes_a_round"] for _, counted in ranks]
            told = 3 * 4 * (n - 1)
            assert max(sent) == pytest.approx(2 * (n - 1) / n * (2 if compressed else 4) * share + told, abs=8)
        if n > 1:
            assert ranks[0][0][0] != ranks[m][0][0], "replicas that see other data are not the same"


@pytest.mark.parametrize("shape", VALIDATED[1:])
def test_ranks_share_a_validation(printed, shape):
    """The same as one process: scores to the last sample, statistics to rounding."""
    one, many = np.load(printed((1, 1), "validates")), np.load(printed(shape, "validates"))
    assert one["scores"] == pytest.approx(many["scores"], rel=1e-6)
    assert one["statistics"] == pytest.approx(many["statistics"], rel=1e-5, abs=1e-7)


def test_a_mean_travels_between_ranks_while_nobody_asks(printed):
    assert "arrived" in printed((2, 1), "travels")
