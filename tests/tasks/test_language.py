"""Language: which tokens a pass sees, what is predicted once, and the loss and the score by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from parle_hpc.data.tokens import Tokens
from parle_hpc.errors import BadInput
from parle_hpc.settings.language import Language
from parle_hpc.tasks.language import LanguageModel


def text(train=103, test=47, vocabulary=200, test_bytes=94):
    """Tokens that tell where they stand."""
    parts = [np.arange(count, dtype=np.uint16) for count in (train, test)]
    return Tokens("numbers", vocabulary, *parts, 2 * train, test_bytes, "0")


def task(context=5, **given):
    options = Language(context=context, depth=1, width=8, heads=2)
    return LanguageModel(options, text(**given))


def draw_from(generator):
    return lambda function: torch.from_numpy(function(generator, 7))


def batch_of(task, part, indices):
    dataset = task.dataset(part)
    return task.collate(dataset.__getitems__(np.asarray(indices)))


@pytest.mark.parametrize("count", [100, 101, 104, 105, 10])
def test_a_pass_is_one_over_the_text(count):
    """Whatever the offset all samples have in common, their windows follow one another; none is beyond the end."""
    one = task(train=count)
    dataset = one.dataset("train")
    assert len(dataset) == count // 5 - 1
    samples = one.collate(dataset.__getitems__(np.arange(len(dataset))))
    assert samples.shape == (len(dataset), 10)
    assert samples.dtype == torch.int64
    for offset in range(5):
        seen, following = one.prepare(samples, lambda function, o=offset: torch.full((len(samples),), o))
        assert seen.flatten().tolist() == list(range(offset, offset + 5 * len(dataset)))
        assert torch.equal(following, seen + 1)
    # with any offset of them all tokens can be seen, but those behind the last window
    assert samples.max() == len(dataset) * 5 + 4 < count


def test_windows_begin_at_random_places_and_at_the_first_without_chance():
    one = task()
    samples = batch_of(one, "train", range(7))
    assert one.prepare(samples, None)[0][:, 0].tolist() == list(range(0, 35, 5))
    generator, starts = np.random.default_rng(0), []
    for _ in range(200):
        seen, following = one.prepare(samples, draw_from(generator))
        assert torch.equal(seen, seen[:, :1] + torch.arange(5))
        assert torch.equal(following, seen + 1)
        starts.append(seen[:, 0] - samples[:, 0])
    counts = torch.cat(starts).bincount(minlength=5)
    assert len(counts) == 5
    assert (counts - 280).abs().max() < 5 * math.sqrt(1400 * 0.2 * 0.8)


@pytest.mark.parametrize(("count", "predicted"), [(46, 45), (47, 45), (50, 45), (51, 50), (6, 5)])
def test_every_token_of_validation_is_predicted_once(count, predicted):
    """But the first, and a tail that is shorter than a window."""
    one = task(test=count)
    dataset = one.dataset("validation")
    seen, following = one.prepare(batch_of(one, "validation", range(len(dataset))), None)
    assert seen.shape == following.shape == (predicted // 5, 5)
    assert following.flatten().tolist() == list(range(1, predicted + 1))
    assert torch.equal(seen, following - 1)


class Table(nn.Module):
    """Logits of what follows a token, whatever comes before it."""

    def __init__(self, vocabulary):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(vocabulary, vocabulary).double()

    def forward(self, tokens):
        return self.rows(tokens)


def test_loss_and_score_by_hand():
    one = task()
    model = Table(200)
    batch = one.prepare(batch_of(one, "validation", [0, 3, 8]), None)
    nats = [
        [-torch.log_softmax(model.rows.weight[at], 0)[at + 1].item() for at in range(5 * i, 5 * i + 5)]
        for i in (0, 3, 8)
    ]
    assert one.loss(model, batch).item() == pytest.approx(np.mean(nats))
    scores = one.scores(model, batch)
    # a token is two bytes
    assert scores["bits_per_byte"].tolist() == pytest.approx((np.mean(nats, 1) / 2 / math.log(2)).tolist())
    assert one.lower_is_better
    one.loss(model, batch).backward()
    assert model.rows.weight.grad.abs().sum() > 0


def test_loss_and_scores_call_the_network_with_the_same_object():
    """So that one pass through it serves both."""
    one, called = task(), []
    model = Table(200)
    batch = one.prepare(batch_of(one, "validation", [0]), None)
    model.register_forward_pre_hook(lambda _, given: called.append(given[0]))
    one.loss(model, batch)
    one.scores(model, batch)
    assert called[0] is called[1]


def test_a_network_that_knows_nothing_has_log_2_of_the_vocabulary():
    one = task(vocabulary=256, test_bytes=47)
    model = one.model().eval()
    score = one.scores(model, one.prepare(batch_of(one, "validation", range(9)), None))["bits_per_byte"]
    assert score.shape == (9,)
    assert score.mean().item() == pytest.approx(8, abs=0.1)


def test_the_model_has_the_options():
    options = Language(context=6, depth=3, width=12, heads=2, dropout=0.5, positions="learned", tied=False)
    model = LanguageModel(options, text(vocabulary=300)).model()
    assert model(torch.zeros(1, 6, dtype=torch.int64)).shape == (1, 6, 300)
    assert (model.context, len(model.blocks), model.dropout.p) == (6, 3, 0.5)
    assert model.positions.weight.shape == (6, 12)
    assert model.head.weight.shape == (300, 12)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match=r"^--task.heads 3: a width of 128 does not divide among 3 heads$"):
        LanguageModel(Language(heads=3, context=4), text()).model()
    for given, words in (
        ({"train": 9}, "--task.context 5: needs 10 tokens, and the train part of numbers has 9; take at most 4"),
        ({"test": 5}, "--task.context 5: needs 6 tokens, and the test part of numbers has 5; take at most 4"),
    ):
        with pytest.raises(BadInput, match=words):
            task(**given)
