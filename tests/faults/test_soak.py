"""A few trials of the soak; `make soak N=100` makes many."""

import random

import pytest
import soak


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "seed"), [("parle", 0), ("sgd", 2)])
def test_a_run_that_is_killed_and_goes_on_is_the_run_that_was_not(kind, seed, digits, tmp_path):
    whole = soak.undisturbed(kind, tmp_path / "whole", digits, 4)
    soak.trial(kind, tmp_path / "trial", digits, 4, random.Random(seed))
    assert soak.result(tmp_path / "trial") == whole
