import subprocess
import sys

from helpers.mpi import ENVIRONMENT

SCRIPT = """
import sys, torch
from parle_hpc import ElasticSGD, EntropySGD, Parle

for kind in (Parle, EntropySGD, ElasticSGD):
    layer = torch.nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1, batches_per_epoch=4)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_torchs_compiler_is_not_loaded_by_an_optimiser():
    """It takes half a second; test_in_a_script.py compiles a step."""
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert result.stdout == "False\n", result.stderr
