"""The paper's networks: sizes, shapes, dropout, and what torch may do with them."""

import pytest
import torch
from torch import nn

from parle_hpc.data.store import open_dataset
from parle_hpc.errors import BadInput
from parle_hpc.models import build, options
from parle_hpc.settings import load
from parle_hpc.tasks.network import network

SMALL = [("lenet", {}, 1, 28), ("allcnn", {"channels": 4}, 3, 32), ("wrn", {"depth": 10, "widen": 2}, 3, 32)]


def size(model):
    return sum(p.numel() for p in model.parameters())


def wrn_parameters(depth, widen, classes, channels=3):
    """Closed form: 3x3 and 1x1 convolutions, two numbers a BatchNorm channel, and the head."""
    count, inputs = 9 * channels * 16, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            count += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            count += inputs * outputs * (inputs != outputs)
            inputs = outputs
    return count + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "given", "parameters"),
    [
        ("lenet", {"in_channels": 1}, 132_220),
        ("allcnn", {}, 1_369_738),
        ("wrn", {}, 36_479_194),
        ("wrn", {"depth": 28, "widen": 10, "num_classes": 100}, 36_536_884),
        ("wrn", {"depth": 16, "widen": 4}, wrn_parameters(16, 4, 10)),
        ("wrn", {"depth": 10, "widen": 1, "num_classes": 7, "in_channels": 1}, wrn_parameters(10, 1, 7, 1)),
        ("wrn", {"depth": 40, "widen": 2}, wrn_parameters(40, 2, 10)),
    ],
)
def test_their_parameters_are_counted(name, given, parameters):
    with torch.device("meta"):
        assert size(build(name, **{"in_channels": 3, **given})) == parameters


@pytest.mark.parametrize(("name", "given", "channels", "pixels"), SMALL)
def test_they_classify_and_survive_compile_and_channels_last(name, given, channels, pixels):
    torch.manual_seed(0)
    model = build(name, num_classes=7, in_channels=channels, **given).double().eval()
    images = torch.rand(5, channels, pixels, pixels, dtype=torch.float64)
    outputs = model(images)
    assert outputs.shape == (5, 7)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(images), outputs, rtol=1e-10)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(last), outputs, rtol=1e-10)
    model.train()
    nn.functional.cross_entropy(model(last), torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(("name", "given", "channels", "pixels"), SMALL)
def test_dropout_is_there_and_can_be_switched_off(name, given, channels, pixels):
    torch.manual_seed(0)
    images = torch.rand(4, channels, pixels, pixels)
    for rate, same in ((0.0, True), (0.5, False)):
        model = build(name, in_channels=channels, dropout=rate, **given)
        assert torch.equal(model(images), model(images)) is same


def test_dropout_of_a_wide_network_is_inside_the_blocks():
    model = build("wrn", in_channels=3, dropout=0.4, depth=16, widen=1)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates == {f"blocks.{i}.dropout": 0.4 for i in range(6)}
    block = model.blocks[0].eval()
    seen = []
    block.dropout.register_forward_hook(lambda *_: seen.append("dropout"))
    block.conv1.register_forward_hook(lambda *_: seen.append("conv1"))
    block.conv2.register_forward_hook(lambda *_: seen.append("conv2"))
    block(torch.rand(1, 16, 8, 8))
    assert seen == ["conv1", "dropout", "conv2"]


def test_all_cnn_has_the_papers_dropout():
    model = build("allcnn", in_channels=3)
    assert [m.p for m in model if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_all_cnn_starts_with_signals_of_its_inputs_size():
    torch.manual_seed(0)
    model = build("allcnn", in_channels=3).eval()
    x = torch.randn(4, 3, 32, 32)
    for module in list(model)[:-3]:
        x = module(x)
        assert 0.2 < x.square().mean() < 5


@pytest.mark.parametrize("depth", [11, 27, 8])
def test_a_depth_that_no_wide_network_has(depth):
    with pytest.raises(ValueError, match=f"6 N \\+ 4.*not {depth}"):
        build("wrn", depth=depth)


def test_a_setting_of_another_network_is_refused(digits):
    data = open_dataset(digits)
    for arguments, words in (
        (["--model.widen", "2"], "--model.widen: lenet has no such option, it has dropout"),
        (["--model.name", "wrn", "--model.depth", "12"], "--model.name wrn: the depth of a WRN"),
    ):
        with pytest.raises(BadInput, match=words):
            network(load(arguments).model, data)
    assert options("wrn") == ("dropout", "depth", "widen")
    assert size(network(load(["--model.name", "wrn", "--model.widen", "1", "--model.depth", "10"]).model, data)) > 0
