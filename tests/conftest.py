import os

import pytest
import torch

from parle_hpc.data.prepare import prepare

# other tests are on these cores; not in the helpers, since benchmarks, which share them, measure without
os.environ.update(OMPI_MCA_mpi_yield_when_idle="1")
# what runs have of these is the tests' to say, not that of the shell in which make was typed
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.pop(name, None)
# of the session's fixtures too, whose neighbours are another worker's
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What takes long first, so that at the end no worker waits for another's last file."""
    slow = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits, a file made once."""
    return prepare("digits", out=tmp_path_factory.mktemp("data") / "digits.h5")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
