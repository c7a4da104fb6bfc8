"""Nothing in a round waits for the device, but its end."""

import json

import pytest
import torch
from helpers.mpi import passes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SMALL = ("--data.batch_size", "8", "--algorithm.L", "3")
DIGITS = ("--data.augment", "true", "--data.preprocessing", "standardize", *SMALL)
ALONE = {
    "parle": DIGITS,
    "entropy_sgd": ("--algorithm.name", "entropy_sgd", *SMALL),
    "elastic_sgd": ("--algorithm.name", "elastic_sgd", *SMALL),
    "sgd": ("--algorithm.name", "sgd", *SMALL),
    "sam": ("--algorithm.name", "sam", "--algorithm.average", "ema", *SMALL),
    "parts of a mini-batch": ("--data.accumulate", "2", *SMALL),
    "bf16": ("--run.precision", "bf16", *SMALL),
    "lagged": ("--algorithm.reference", "lagged", *SMALL),
    "AdamW inside, a text": ("--recipe", "gpt_text", "--task.width", "16", "--task.depth", "1", *SMALL),
    "loader processes": ("--data.workers", "1", *SMALL),
}
TWO = {
    "replicas": SMALL,
    "half the payload": ("--algorithm.payload", "bfloat16", *SMALL),
    "by their speeds": ("--data.batch_size", "8", "--algorithm.L", "4", "--algorithm.pace", "time"),
}


def found(ranks, cases, device, tmp_path):
    given = json.dumps(list(map(list, cases.values())))
    printed = passes(ranks, "waits.py", device, given, cwd=tmp_path, timeout=250)
    # a reduction on its way is looked after in the memory that MPI reads and writes, which on a CPU is like any other
    calls = json.loads(printed.splitlines()[-1])
    return {case: [c for c in each if " in coupling/" not in c] for case, each in zip(cases, calls, strict=True)}


@pytest.mark.parametrize(("ranks", "cases"), [(1, ALONE), (2, TWO)], ids=["one rank", "two replicas"])
def test_nothing_waits_inside_a_round(ranks, cases, tmp_path):
    assert found(ranks, cases, "cpu", tmp_path) == {case: [] for case in cases}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch refuses to wait on a GPU, and there is none here")
@pytest.mark.parametrize(("ranks", "cases"), [(1, ALONE), (2, TWO)], ids=["one rank", "two replicas"])
def test_torch_refuses_to_wait_inside_a_round(ranks, cases, tmp_path):
    assert found(ranks, cases, "cuda", tmp_path) == {case: [] for case in cases}
