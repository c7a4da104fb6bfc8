"""BatchNorm statistics anew, scores on any number of ranks, and the model left as it was."""

from types import SimpleNamespace

import pytest
import torch
from helpers import raw
from torch.optim.swa_utils import update_bn

from parle_hpc import Parle, batchnorm_of_reference, models
from parle_hpc.cluster.agreement import Group
from parle_hpc.data.store import open_dataset
from parle_hpc.data.stream import Stream
from parle_hpc.errors import BadInput
from parle_hpc.settings import load
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.batchnorm import recompute_statistics, untouched
from parle_hpc.training.computing import Computing
from parle_hpc.training.summary import summarise
from parle_hpc.training.tally import Tally
from parle_hpc.training.validation import Score, Validation
from parle_hpc.training.validator import Outcome


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
    recompute_statistics(mine, mine, batches, Group())
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
    sources = Sources(load(["--data.path", str(digits)]))
    computing = Computing(sources.task, model, torch.device("cpu"))
    test, train, state = Validation(computing, sources, 64, at_once=500).validate(limit=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [m.momentum for m in model.modules() if hasattr(m, "running_mean")] == [0.1] * 3
    assert torch.equal(torch.random.get_rng_state(), random)
    # what comes back has statistics of its own, and an untrained network guesses
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])
    assert 70 < test.scores["error"] < 100
    assert 70 < train.scores["error"] < 100


def test_scores_are_the_same_where_the_next_batch_is_made_while_one_is_scored(digits):
    class Counted(Stream):
        sweeps = 0

        def map(self, function, items):
            self.sweeps += 1
            return super().map(function, items)

    cpu, model, sources = torch.device("cpu"), network().float(), Sources(load(["--data.path", str(digits)]))
    stream, computing = Counted(cpu), Computing(sources.task, model, cpu)
    found = [Validation(computing, sources, 64, at_once=100, stream=s).validate(limit=3)[:2] for s in (None, stream)]
    assert found[0] == found[1]
    assert stream.sweeps == 3


def test_untouched_restores_after_an_error():
    model = network()

    def fail():
        with untouched(model):
            recompute_statistics(model, model, images(1), Group())
            raise RuntimeError

    before = [b.clone() for b in model.buffers()]
    with pytest.raises(RuntimeError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert model.training


def test_the_reference_is_right_only_with_statistics_of_its_own(digits):
    """As a user validates: LeNet, 50 steps; with the statistics of the live weights it guesses."""
    data = open_dataset(digits)
    torch.manual_seed(0)
    model = models.build("lenet")
    optimizer = Parle(model.parameters(), lr=0.1, batches_per_epoch=22)
    batches = [raw.seen(data.train, range(64 * k, 64 * (k + 1))) for k in range(22)]
    for k in range(50):
        images, labels = batches[k % 22]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = raw.seen(data.test, range(len(data.test)))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def error():
        with torch.no_grad():
            return 100 * (model(images).argmax(1) != labels).float().mean().item()

    with optimizer.at_reference(), batchnorm_of_reference(model, batches):
        assert not model.training
        right = error()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with optimizer.at_reference():
        model.eval()
        wrong = error()
    assert right < 10
    assert wrong > 2 * right + 10


def test_what_a_loader_yields_may_be_inputs_or_pairs_and_one_sample_is_left_out():
    means = []
    for batches in (images(3), [(b, None) for b in images(3)], [*images(3), images(1)[0][:1]]):
        torch.manual_seed(1)
        model = network()
        torch.manual_seed(2)
        given = [b if isinstance(b, tuple) else b.fill_(0.5) for b in batches]
        given = [(b[0].fill_(0.5), b[1]) if isinstance(b, tuple) else b for b in given]
        with batchnorm_of_reference(model, given):
            means.append(model[1].running_mean.clone())
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[0], means[2])


def test_no_batch_for_batchnorm_is_said_and_without_batchnorm_nothing_is_asked():
    with pytest.raises(BadInput, match="no mini-batch of two"), batchnorm_of_reference(network(), []):
        pass
    plain = torch.nn.Linear(2, 2)
    with batchnorm_of_reference(plain, iter(())):
        assert not plain.training


def test_a_run_that_had_nothing_left_to_train_tells_its_error_and_no_speed():
    """As a member of a mailbox that begins beside others which have just done their rounds."""
    told, score = [], Score(0.5, {"error": 1.5})
    metrics = SimpleNamespace(event=lambda *args, **more: None, say=told.append, seconds=3.0)
    task = SimpleNamespace(units={"error": "%"})
    summarise(metrics, Outcome(score, score, 0.0, [1.5]), task, Tally(step=500), 20, 22, "run")
    assert told[0].startswith("validation error of the reference  1.50 %  (training 1.50 %, replicas 1.50 %)")
    assert told[1].startswith("trained                            500 mini-batches a replica (22.7 passes)")
