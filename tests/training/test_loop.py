"""The loop's backward pass."""

from types import SimpleNamespace

import pytest
import torch

from parle_hpc import SAM
from parle_hpc.training.loop import backward, gradients


def test_gradients_may_leave_in_the_last_parts_backward_pass_alone():
    w, seen = torch.nn.Parameter(torch.ones(2)), []
    computing = SimpleNamespace(loss=lambda batch: (w * batch).sum())
    loss = backward(computing, [(1, 2.0), (3, 4.0)], lambda: seen.append(w.grad.tolist()))
    assert seen == [[0.5, 0.5]]
    assert w.grad.tolist() == [3.5, 3.5]
    assert loss.item() == pytest.approx(7.0)


def test_of_sam_those_at_w_and_eps_leave_and_the_loss_is_that_of_w():
    w, seen = torch.nn.Parameter(torch.tensor([3.0, 4.0])), []
    computing = SimpleNamespace(loss=lambda batch: batch * (w * w).sum() / 2)
    parts = SimpleNamespace(computing=computing, optimizer=SAM([w], lr=0.1, ascent=0.5))
    loss = gradients(parts, [(2, 1.0), (2, 3.0)], lambda: seen.append((w.tolist(), w.grad.tolist())))
    # w + eps is 1.1 w; the first part of the second pass is there, of the first pass nothing
    ((at, there),) = seen
    assert at == pytest.approx([3.3, 4.4])
    assert there == pytest.approx([1.65, 2.2])
    assert w.grad.tolist() == pytest.approx([6.6, 8.8])
    assert loss.item() == pytest.approx(25.0)
    assert w.tolist() == [3.0, 4.0]
