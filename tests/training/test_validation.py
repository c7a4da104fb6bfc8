"""BatchNorm statistics anew, scores on any number of ranks, and the model left as it was."""

import pytest
import torch
from torch.optim.swa_utils import update_bn

from parle_hpc import models
from parle_hpc.cluster.agreement import Group
from parle_hpc.data.store import open_dataset
from parle_hpc.training.validation import Validation, recompute_statistics, untouched


def network():
    torch.manual_seed(0)
    return models.build("lenet").double()


def images(count):
    return list(torch.rand(count, 16, 1, 28, 28, dtype=torch.float64))


def test_statistics_are_those_of_update_bn():
    mine, theirs, batches = network(), network(), images(5)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    update_bn(batches, theirs)
    recompute_statistics(mine, batches, Group())
    for (name, a), b in zip(mine.named_buffers(), theirs.buffers(), strict=True):
        if "num_batches" not in name:
            assert torch.allclose(a, b, rtol=1e-12, atol=0), name
    assert not mine.training


def test_the_training_model_is_untouched(digits):
    model = network().float()
    model.train()
    model[4].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    data = open_dataset(digits)
    test, train, state = Validation(model, data, 64, torch.device("cpu")).validate(limit=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [m.momentum for m in model.modules() if hasattr(m, "running_mean")] == [0.1] * 3
    assert torch.equal(torch.random.get_rng_state(), random)
    # what comes back has statistics of its own, and an untrained network guesses
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])
    assert 70 < test.error < 100
    assert 70 < train.error < 100


def test_untouched_restores_after_an_error():
    model = network()

    def fail():
        with untouched(model):
            recompute_statistics(model, images(1), Group())
            raise RuntimeError

    before = [b.clone() for b in model.buffers()]
    with pytest.raises(RuntimeError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert model.training
