"""The coupling hidden or not, sharded or not, changes no bit; state and traffic are what the formulas say."""

import json

import pytest
from helpers.mpi import passes

CASES = (
    "hidden, sharded",
    "hidden, sharded, gathered by Horovod",
    "hidden, whole",
    "blocking, sharded",
    "blocking, whole",
)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 1), (2, 2), (1, 4)])
def test_no_bit_changes_and_each_rank_holds_and_sends_its_share(n, m):
    for case, ranks in json.loads(passes(n * m, "sharded.py", n)).items():
        reference, payload = case.split()
        assert len(ranks) == n * m
        for digests, counted in ranks:
            # all ranks of the replica, all ways
            assert len({digest for rank in digests for digest in rank}) == 1
            assert set(counted) == set(CASES)
        extra = 3 + (reference == "lagged")
        compressed = payload == "bfloat16" and n > 1
        for name in CASES:
            N, sharded = ranks[0][1][name]["N"], "sharded" in name
            share = -(-N // m) if sharded else N
            states = [counted[name]["state_floats"] for _, counted in ranks]
            # 2 + 3/m floats per parameter, `lagged` one share more; the last rank's share is what is left of N
            if compressed:
                # h, its part of e and of the sum, and in two bytes each what is sent, what arrives and what is told
                part = -(-share // n)
                assert max(states) == 2 * N + (extra + 1) * share + 2 * part + (2 * n * part + part) / 2
            else:
                assert max(states) == 2 * N + extra * share
                assert sum(states) == n * (2 * N * m + extra * (N if sharded else N * m))
            sent = [counted[name]["bytes_a_round"] for _, counted in ranks]
            assert max(sent) == pytest.approx(2 * (n - 1) / n * (2 if compressed else 4) * share, abs=8)
        if n > 1:
            assert ranks[0][0][0] != ranks[m][0][0], "replicas that see other data are not the same"
