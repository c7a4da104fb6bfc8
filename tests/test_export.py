"""What another tool reads is what the run left, to the bit; and a mistake is one line."""

import os
import sys
from importlib.metadata import version

import pytest
import tomlkit
import torch
from helpers.mpi import module
from helpers.records import write_run

from parle_hpc import export
from parle_hpc.training.exported import write_safetensors
from parle_hpc.training.finished import BadInput

pytestmark = pytest.mark.filterwarnings("error")
LIBRARY = "pip install safetensors"


@pytest.fixture
def library():
    return pytest.importorskip("safetensors.torch", reason=LIBRARY)


class Tied(torch.nn.Module):
    """An embedding that is the last layer too, BatchNorm's statistics, a number, and what is not in order in memory."""

    def __init__(self):
        super().__init__()
        self.words, self.last = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
        self.last.weight = self.words.weight
        self.norm, self.conv = torch.nn.BatchNorm1d(4), torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        self.coarse = torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, whose data set is nowhere."""
    torch.manual_seed(0)
    folder = write_run(tmp_path / "run", [1.0], "--recipe", "lenet_mnist", "--data.path", "/nowhere/mnist.h5")
    torch.save(Tied().state_dict(), folder / "reference.pt")
    return folder


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).tolist()


def test_the_file_has_each_tensor_to_the_bit_and_says_where_it_is_from(run, tmp_path, library):
    file = tmp_path / "new" / "x.safetensors"
    result = module("parle_hpc.export", run, "--safetensors", file)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"written {file}\n", "")
    assert os.listdir(file.parent) == [file.name]
    before, after = torch.load(run / "reference.pt", weights_only=True), library.load_file(file)
    assert {name: bits(tensor) for name, tensor in after.items()} == {n: bits(t) for n, t in before.items()}
    with library.safe_open(file, "pt") as opened:
        told = opened.metadata()
    settings = (run / "config.toml").read_text()
    assert told == {"format": "pt", "parle_hpc": version("parle_hpc"), "recipe": "lenet_mnist", "settings": settings}
    assert tomlkit.parse(told["settings"])["data"]["path"] == "/nowhere/mnist.h5"


def test_tied_weights_are_loaded_and_stay_tied(run, tmp_path, library):
    file = write_safetensors(run, tmp_path / "x.safetensors")
    model = Tied()
    model.load_state_dict(library.load_file(file))
    assert model.last.weight is model.words.weight
    saved = torch.load(run / "reference.pt", weights_only=True)
    assert bits(model.words.weight.detach()) == bits(saved["words.weight"]) == bits(saved["last.weight"])


def test_a_file_is_written_over_whole_or_not_at_all(run, tmp_path, library, monkeypatch):
    file = tmp_path / "x.safetensors"
    file.write_text("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        assert refused(run, file) == (
            f"--safetensors {file}: cannot be written (No space left on device); give a place that can"
        )
    assert file.read_text() == "before"
    write_safetensors(run, file)
    assert len(library.load_file(file)) == len(Tied().state_dict())


def refused(run, file):
    """The line, of a call that leaves nothing behind."""
    before = set(file.parent.iterdir())
    with pytest.raises(BadInput) as told:
        write_safetensors(run, file)
    assert set(file.parent.iterdir()) == before
    return str(told.value)


def test_what_is_no_finished_run_gets_one_line(run, tmp_path, library):
    file, path = tmp_path / "x.safetensors", run / "reference.pt"
    assert refused(tmp_path, file) == f"{tmp_path} holds no finished run: config.toml is missing"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refused(run, file).startswith(f"{path} is damaged (")
    # a bit of the weights, which torch would load
    at = whole.index(torch.load(path_of(whole, tmp_path), weights_only=True)["words.weight"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert refused(run, file).startswith(f"{path} is damaged: ")
    for state in ([torch.zeros(2)], {"epoch": 3}, {3: torch.zeros(2)}):
        torch.save(state, path)
        assert refused(run, file).startswith(f"{path} is damaged")
    torch.save({"x": torch.zeros(2, dtype=torch.complex128)}, path)
    assert refused(run, file).startswith(f"{path} holds what safetensors does not (")
    path.unlink()
    assert refused(run, file) == f"{run} holds no finished run: reference.pt is missing"


def path_of(content, folder):
    path = folder / "whole.pt"
    path.write_bytes(content)
    return path


def test_where_nothing_can_be_written_one_line_says_so(run, tmp_path, monkeypatch, capfd):
    folder, inside = tmp_path / "folder.safetensors", tmp_path / "plain" / "x.safetensors"
    folder.mkdir()
    assert refused(run, folder) == f"--safetensors {folder}: is there, and is not a file; give another name"
    for wrong in (run / "reference.pt", tmp_path / "x"):
        assert refused(run, wrong) == f"--safetensors {wrong}: must be a file whose name ends in .safetensors"
    pytest.importorskip("safetensors.torch", reason=LIBRARY)
    (tmp_path / "plain").write_text("")
    with pytest.raises(
        BadInput, match=r"^--safetensors .*/plain/x.safetensors: cannot be written \(.*\); give a place"
    ):
        write_safetensors(run, inside)
    monkeypatch.setattr(sys, "argv", ["export", str(run), "--safetensors", str(folder)])
    monkeypatch.setattr(export, "leave", lambda error, status: sys.exit(f"{status} {error}"))
    with pytest.raises(SystemExit, match="2 --safetensors "):
        export.main()


def test_a_missing_library_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    line = refused(run, tmp_path / "x.safetensors")
    assert line.startswith("--safetensors needs what is not installed here (")
    assert line.endswith("): pip install safetensors")
