import pytest
import torch

from parle_hpc.data.prepare import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits, a file made once."""
    return prepare("digits", out=tmp_path_factory.mktemp("data") / "digits.h5")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
