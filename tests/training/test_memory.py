"""What the heap does between mini-batches."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from parle_hpc.training.memory import keep_freed

if {keep}:
    keep_freed()
for i in range(30):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = torch.ones(1 << 24)
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_a_mini_batch_frees_serves_the_next_one():
    """Page faults of 20 times 64 MB: one for each page of 4 KB, or of 2 MB where the system has them, or none."""
    faults = {}
    for keep in (True, False):
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        faults[keep] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < 100
    assert faults[False] >= 20 * 32
