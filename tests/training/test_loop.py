"""The loop's backward pass."""

from types import SimpleNamespace

import pytest
import torch

from parle_hpc.training.loop import backward


def test_gradients_may_leave_in_the_last_parts_backward_pass_alone():
    w, seen = torch.nn.Parameter(torch.ones(2)), []
    computing = SimpleNamespace(loss=lambda batch: (w * batch).sum())
    loss = backward(computing, [(1, 2.0), (3, 4.0)], lambda: seen.append(w.grad.tolist()))
    assert seen == [[0.5, 0.5]]
    assert w.grad.tolist() == [3.5, 3.5]
    assert loss.item() == pytest.approx(7.0)
