"""Permutations leave a network's outputs as they were, and alignment finds them again."""

import pytest
import torch

from parle_hpc.models import build
from parle_hpc.paper.alignment import align, average, greedy, overlap, permuted, similarity
from parle_hpc.paper.study import Study
from parle_hpc.settings import load
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.computing import Computing
from parle_hpc.training.validation import Validation

NETWORKS = [
    ("lenet", {}, 1, 28),
    ("allcnn", {"channels": 6}, 3, 32),
    ("wrn", {"depth": 10, "widen": 1}, 3, 32),
    ("wrn", {"depth": 16, "widen": 2}, 3, 32),
]


def network(name, options, channels, seed=0):
    """A network whose BatchNorm has weights and statistics of its own, as after training."""
    torch.manual_seed(seed)
    model = build(name, in_channels=channels, **options).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            module.bias.data.normal_()
    return model


def shuffled(model, seed=1):
    """Its state with all channels that may be permuted permuted."""
    torch.manual_seed(seed)
    state = model.state_dict()
    for symmetry in model.symmetries():
        count = len(state[f"{symmetry.filters[0]}.weight"])
        state = permuted(state, symmetry, torch.randperm(count))
    return state


@pytest.mark.parametrize(("name", "options", "channels", "pixels"), NETWORKS)
def test_what_a_permuted_or_aligned_network_computes_is_the_same(name, options, channels, pixels):
    model, images = network(name, options, channels), torch.rand(6, channels, pixels, pixels, dtype=torch.float64)
    other = network(name, options, channels, seed=5)
    with torch.no_grad():
        outputs = model(images)
        for state in (shuffled(model), align(model.state_dict(), other.state_dict(), model.symmetries())):
            assert any(not torch.equal(state[key], value) for key, value in model.state_dict().items())
            moved = network(name, options, channels)
            moved.load_state_dict(state)
            assert torch.allclose(moved(images), outputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "options", "channels", "pixels"), NETWORKS)
def test_alignment_undoes_any_permutation(name, options, channels, pixels):
    model = network(name, options, channels)
    original, state = model.state_dict(), shuffled(model)
    assert min(overlap(original, state).values()) < 0.9
    found = align(state, original, model.symmetries())
    assert all(torch.equal(found[key], value) for key, value in original.items())
    assert all(value == pytest.approx(1) for value in overlap(original, found).values())


@pytest.mark.parametrize(("name", "options", "channels", "pixels"), NETWORKS)
def test_every_hidden_channel_may_move(name, options, channels, pixels):
    """Each layer with weights but the last is produced by exactly one Symmetry, and each but the first reads one."""
    model = network(name, options, channels)
    layers = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    norms = [n for n, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    last, first = layers[-1], layers[0]
    symmetries = model.symmetries()
    assert sorted(n for s in symmetries for n in s.filters) == sorted(set(layers) - {last})
    assert sorted(n for s in symmetries for n in s.readers) == sorted(set(layers) - {first})
    assert sorted(n for s in symmetries for n in s.norms) == sorted(norms)


def test_alignment_raises_the_overlap_of_independent_networks():
    first, second = (network("lenet", {}, 1, seed).state_dict() for seed in (0, 1))
    symmetries = network("lenet", {}, 1).symmetries()
    before, after = overlap(first, second), overlap(first, align(second, first, symmetries))
    # the last layer's rows are the classes; its inputs have moved
    assert all(after[layer] > before[layer] for layer in list(before)[:-1])
    assert overlap(first, first) == pytest.approx(dict.fromkeys(before, 1.0))


def test_greedy_takes_the_best_pair_first():
    assert greedy(torch.tensor([[0.9, 0.8], [0.85, 0.1]])).tolist() == [0, 1]
    assert greedy(torch.tensor([[0.1, 0.8, 0.7], [0.2, 0.9, 0.3], [0.6, 0.5, 0.65]])).tolist() == [2, 1, 0]
    weight = torch.randn(7, 3, 2, 2)
    assert torch.allclose(similarity(weight, 3 * weight).diagonal(), torch.ones(7, dtype=torch.float64))


def test_average_is_the_mean_of_every_tensor():
    states = [network("lenet", {}, 1, seed).state_dict() for seed in range(3)]
    mean = average(states)
    assert torch.allclose(mean["0.weight"], sum(s["0.weight"] for s in states) / 3)
    assert mean["1.num_batches_tracked"].dtype == torch.int64


def test_a_study_of_one_network_shuffled_is_of_one_network(digits):
    """Three times the same network: ensemble and aligned average are it, the naive average is not."""
    sources = Sources(load(["--data.path", str(digits)]))
    model = network("lenet", {}, 1).float()
    validation = Validation(Computing(sources.task, model, torch.device("cpu")), sources, 64, at_once=500)
    _, _, state = validation.validate()
    model.load_state_dict(state)
    results = Study(model, validation, [state, shuffled(model, 1), shuffled(model, 2)]).results()
    first = results["scores"][0]
    assert results["scores"] == pytest.approx([first] * 3, abs=0.3)
    assert results["ensemble"] == pytest.approx(first, abs=0.3)
    assert results["aligned_average"] == pytest.approx(first, abs=0.3)
    assert results["correlation"] == pytest.approx(1, abs=1e-6)
    assert min(min(values) for values in results["aligned_overlap"].values()) > 0.999999
    assert max(min(values) for values in results["overlap"].values()) < 0.9
