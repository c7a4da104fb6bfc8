"""The transformer: what a token may see, its positions, its size, and how it starts."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from parle_hpc.models import MODELS
from parle_hpc.models.gpt import GPT, rotate, turns

SMALL = {"vocabulary": 29, "context": 12, "depth": 2, "width": 24, "heads": 3}


def made(**given):
    torch.manual_seed(0)
    return GPT(**{**SMALL, **given})


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tied", [True, False])
def test_its_parameters_are_counted(positions, tied):
    with torch.device("meta"):
        model = GPT(257, 96, 5, 48, 6, positions=positions, tied=tied)
    blocks = 5 * (12 * 48**2 + 2 * 48) + 48
    assert size(model) == blocks + 257 * 48 * (1 if tied else 2) + 96 * 48 * (positions == "learned")
    assert len(model.state_dict()) == len(list(model.parameters()))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_no_token_sees_a_later_one(positions):
    model = made(positions=positions).double()
    tokens = torch.randint(29, (3, 12))
    before = model(tokens)
    for place in (0, 5, 11):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 29
        difference = (model(changed) - before).abs().amax((0, 2))
        assert torch.equal(difference[:place], torch.zeros(place, dtype=torch.float64))
        # and each from there on sees it
        assert (difference[place:] > 0).all()
    assert torch.allclose(model(tokens[:, :7]), before[:, :7])


def test_rotary_scores_depend_on_the_distance_alone():
    angles = turns(40, 8).double()
    query, key = torch.randn(2, 8, dtype=torch.float64)
    turned = [rotate(x.expand(40, 8), angles) for x in (query, key)]
    scores = turned[0] @ turned[1].T
    for distance in range(-20, 21):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[0].expand_as(along), rtol=1e-6, atol=1e-6)
    assert scores[0, 0].item() == pytest.approx((query @ key).item())
    assert scores[0].std() > 0.1


def test_with_rotary_it_does_not_matter_where_a_text_begins():
    model = made().double()
    tokens = torch.randint(29, (2, 12))
    before = model(tokens)
    model.turns = turns(12 + 30, 8).double()[:, 30:]
    assert torch.allclose(model(tokens), before, atol=1e-6)
    model.turns = turns(24, 8).double()[:, ::2]
    assert not torch.allclose(model(tokens), before, atol=1e-4)


def test_the_order_of_tokens_matters_by_either_kind_of_positions():
    tokens = torch.randint(29, (2, 12))
    turned = tokens.clone()
    turned[:, :11] = tokens[:, :11].flip(1)
    for positions in ("rotary", "learned"):
        model = made(positions=positions)
        assert not torch.allclose(model(tokens)[:, -1], model(turned)[:, -1], atol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_reaches_every_weight(positions, tied):
    model = made(positions=positions, tied=tied)
    tokens = torch.arange(48).reshape(4, 12) % 29
    cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, p in model.named_parameters():
        rows = p.grad.flatten(1).abs().amax(1) if p.dim() > 1 else p.grad.abs()
        assert (rows > 0).all(), name


@pytest.mark.parametrize("tied", [True, False])
def test_it_begins_by_knowing_nothing(tied):
    """The loss is log(vocabulary), and what the branches add does not grow with their number."""
    tokens = torch.randint(256, (8, 32))
    for depth in (1, 12):
        torch.manual_seed(0)
        model = GPT(256, 32, depth, 64, 4, tied=tied)
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(256), abs=0.05)
        for block in model.blocks:
            assert block.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
            for last in (block.attention.out, block.down):
                assert last.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.05)


def test_dropout_is_there_and_can_be_switched_off():
    tokens = torch.randint(29, (2, 12))
    for rate, same in ((0.0, True), (0.3, False)):
        model = made(dropout=rate)
        assert torch.equal(model(tokens), model(tokens)) is same
        model.eval()
        assert torch.equal(model(tokens), model(tokens))


def test_it_can_be_compiled():
    model = made().double()
    tokens = torch.randint(29, (2, 9))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(tokens), model(tokens), rtol=1e-10)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 25}, "a width of 25 does not divide among 3 heads"),
        ({"width": 27}, "heads of 9 numbers, and rotary positions turn pairs"),
        ({"positions": "sine"}, "positions 'sine'; known: rotary, learned"),
    ],
)
def test_what_cannot_be_made_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        made(**given)


def test_heads_of_an_odd_size_may_learn_their_positions():
    assert made(width=27, positions="learned")(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 29)


def test_more_tokens_than_the_context_are_refused():
    for positions in ("rotary", "learned"):
        with pytest.raises(ValueError, match="13 tokens, and the context is 12"):
            made(positions=positions)(torch.zeros(1, 13, dtype=torch.int64))


def test_it_is_no_network_of_images():
    assert not any(issubclass(kind, GPT) for kind in MODELS.values())
