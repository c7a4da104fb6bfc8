"""The precision that a network computes in, and its compilation: what they change, and what they must not."""

import types
from functools import partial

import pytest
import torch
from helpers.mpi import pass_in_turn
from helpers.task_files import write
from helpers.trainer import TRAIN, equal, events, weights
from torch import nn
from torch._dynamo.utils import counters

from parle_hpc import Task
from parle_hpc.errors import BadInput
from parle_hpc.settings import load
from parle_hpc.training.computing import Computing, compiled, settle_precision

CPU = torch.device("cpu")


class Lines(Task):
    """Lines in two dimensions, a network with BatchNorm and dropout."""

    def model(self):
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def scores(self, model, batch):
        return {"distance": (model(batch[0]) - batch[1]).abs().flatten(1).mean(1)}


def batch(samples):
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(samples))
    return samples, (x, x.sum(1, keepdim=True))


def computing(precision="fp32"):
    torch.manual_seed(0)
    task = Lines()
    return Computing(task, task.model(), CPU, precision)


def topology(*told):
    """One rank beside others, which tell the same, or `told`."""
    return types.SimpleNamespace(world=types.SimpleNamespace(allgather=lambda mine: [mine, *told]))


def settled(asked, before=None, others=()):
    settings = load(["--run.precision", asked])
    stored = before and types.SimpleNamespace(manifest={"settings": {"run": {"precision": before}}})
    settle_precision(settings, topology(*others), CPU, stored)
    return settings.run.precision


def test_the_precision_is_the_same_on_all_ranks_and_stays():
    assert settled("auto") == "fp32"
    assert settled("auto", "bf16") == "bf16"
    # made on a GPU, and gone on with on a CPU
    assert settled("auto", "tf32") == "fp32"
    assert settled("bf16", "fp32") == "bf16"
    assert settled("auto", "bf16", others=["fp32"]) == "fp32"
    with pytest.raises(BadInput, match="tf32: is of a GPU's matrix products"):
        settled("tf32")


def test_in_bf16_the_network_computes_in_it_and_is_float32():
    half, full = computing("bf16"), computing()
    seen = []
    half.model[0].register_forward_hook(lambda layer, given, found: seen.append(found.dtype))
    _, some = batch(64)
    torch.manual_seed(1)
    loss = half.loss(some)
    loss.backward()
    torch.manual_seed(1)
    assert loss.item() == pytest.approx(full.loss(some).item(), rel=0.03)
    assert seen == [torch.bfloat16]
    assert (
        {p.dtype for p in half.model.parameters()} == {p.grad.dtype for p in half.model.parameters()} == {torch.float32}
    )
    half.model.eval()
    with torch.no_grad():
        half.values(64, some)
        half.forward(some)
    assert set(seen) == {torch.bfloat16}


@pytest.fixture(scope="module")
def compiling():
    """A Computing that is compiled for mini-batches of 32 and 20, and to score 50 at once; and one that is not.

    Without the last step, in which a C++ compiler takes half a minute.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        return compiled_and_not()


def compiled_and_not():
    made, plain = computing(), computing()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    random = torch.get_rng_state()
    assert made.compile([batch(32), batch(20)], [batch(50)]) is None
    assert torch.equal(torch.get_rng_state(), random)
    state = made.model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert all(p.grad is None for p in made.model.parameters())
    return made, plain


def test_what_is_compiled_computes_the_same(compiling):
    made, plain = compiling
    for each in compiling:
        # dropout is drawn in other ways
        each.model.train()
        each.model[2].eval()
    for size in (32, 20):
        losses = [each.loss(batch(size)[1]) for each in compiling]
        for loss in losses:
            loss.backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        for p, q in zip(made.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_nothing_is_compiled_again(compiling):
    made, _ = compiling
    made.model.train()
    made.loss(batch(32)[1])
    before = counters["stats"]["unique_graphs"]
    for _ in range(2):
        made.model.train()
        for size in (32, 20):
            made.loss(batch(size)[1]).backward()
        made.model.eval()
        with torch.no_grad():
            # the last of a set is as long as it is
            for size in (50, 13, 7):
                loss, scores = made.values(*batch(size))
                assert scores["distance"].shape == (size,)
                assert loss.item() == pytest.approx(made._values(batch(size)[1])[0].item(), rel=1e-5)
            made.forward(batch(11)[1])
    assert before > 0
    assert counters["stats"]["unique_graphs"] == before


def test_a_network_that_does_not_compile_is_computed_as_it_was(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    made, plain = computing(), computing()
    line = compiled(made, [batch(16)], [batch(16)], topology(None))
    assert line.startswith("the network is not compiled, and computes as without --run.compile: InvalidCxxCompiler: ")
    for each in (made, plain):
        each.model.train()
    losses = []
    for each in (made, plain):
        torch.manual_seed(1)
        losses.append(each.loss(batch(16)[1]))
    assert torch.equal(*losses)


def test_where_one_rank_cannot_none_does():
    made = computing()
    made.compile = lambda parts, evaluated: setattr(made, "_training", None)
    line = compiled(made, [], [], topology("RuntimeError: no room"))
    assert line.endswith("RuntimeError: no room")
    made.loss(batch(8)[1])


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_in_bf16_that_is_compiled_goes_on_bit_for_bit(tmp_path):
    common = (*TRAIN, "--task.file", write(tmp_path), "--data.batch_size", 40, "--algorithm.L", 4)
    common += ("--run.precision", "bf16", "--run.compile", "true", "--out")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, first, second = pass_in_turn(
        1,
        (*common, whole, "--schedule.max_rounds", 4),
        (*common, parts, "--schedule.max_rounds", 2),
        (*common, parts, "--schedule.max_rounds", 4, "--run.precision", "auto"),
        timeout=500,
    )
    for line in (", cpu in bf16, ", "the network is compiled, in "):
        assert line in first
        assert line in second
    assert "goes on after round 2/4" in second
    assert equal(whole, parts)
    state = weights(whole)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert not any("_orig_mod" in name for name in state)
    one, other = (events(run, "validate")[-1] for run in (whole, parts))
    assert one["val_loss"] == other["val_loss"]
