"""Passes over a DataLoader that begin in the middle are the rest of passes that began at the start."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from parle_hpc.errors import BadInput
from parle_hpc.training.passes import over


class Drawing(Dataset):
    """Samples that draw from every generator of the process."""

    def __len__(self):
        return 17

    def __getitem__(self, index):
        return index, random.random() + np.random.rand() + torch.rand(()).item()


def seen(first, last):
    """What a network with dropout sees of steps `first` to `last`, and draws itself; state: generators at the start."""
    sampler = DistributedSampler(Drawing(), num_replicas=2, rank=1, seed=3)
    loader = DataLoader(Drawing(), batch_size=3, sampler=sampler, drop_last=True)
    return [
        (step, x.tolist(), y.tolist(), torch.rand(2).tolist()) for step, (x, y) in over(loader, range(first, last), 0)
    ]


def test_what_goes_on_in_mid_pass_sees_and_draws_the_rest():
    from parle_hpc.checkpoints.resume import random_state, set_random_state

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    start = random_state()
    whole = seen(0, 14)
    assert len({tuple(x) for _, x, _, _ in whole}) == 14  # five passes of three mini-batches, in orders of their own
    for stop in (2, 3, 7):
        set_random_state(start)
        first = seen(0, stop)
        assert first + seen(stop, 14) == whole


def test_a_sampler_without_passes_is_refused():
    with pytest.raises(BadInput, match=r"RandomSampler, has no set_epoch.*DistributedSampler"):
        next(over(DataLoader(Drawing(), shuffle=True), range(3), 0))
