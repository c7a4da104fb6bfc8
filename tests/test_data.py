"""Raw files to HDF5, the reader's checks, and who sees which samples."""

import gzip
import hashlib
import http.server
import struct
import threading
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parle_hpc.data import prepare as preparation
from parle_hpc.data.split import MiniBatches, shares
from parle_hpc.data.store import open_dataset
from parle_hpc.failure import BadInput


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder in MNIST's format, small: two parts of 12 and 5 images; its checksums stand for the right ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 12), ("test", 5)):
        arrays = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        files[part] = []
        for (name, _), array in zip(preparation.MNIST_FILES[part], arrays, strict=True):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            files[part].append((name, hashlib.md5(idx(array)).hexdigest()))
    monkeypatch.setattr(preparation, "MNIST_FILES", files)
    return tmp_path


def test_mnist_from_a_folder(source):
    path = preparation.prepare("mnist", source, source / "out" / "mnist.h5")
    data = open_dataset(path)
    assert (data.name, data.classes) == ("mnist", 10)
    assert data.train.images.shape == (12, 1, 28, 28)
    raw = gzip.decompress((source / "train-images-idx3-ubyte.gz").read_bytes())
    assert data.train.images.tobytes() == raw[16:]
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4]
    with h5py.File(path) as file:
        assert file["train/images"].chunks is None
        assert file.attrs["mean"][0] == pytest.approx(data.train.images.mean() / 255)
        assert file.attrs["std"][0] == pytest.approx(data.train.images.std() / 255)
        assert len(file.attrs["checksum"].split()) == 4
    # unpacked files serve as well, and nothing else is left beside the result
    packed = source / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    preparation.prepare("mnist", source, path)
    assert [p.name for p in path.parent.iterdir()] == ["mnist.h5"]


def test_mnist_is_downloaded_from_the_first_mirror_that_has_it(source, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=source)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(preparation, "MNIST_MIRRORS", (f"{there}gone/", there))
        path = preparation.prepare("mnist", None, source / "out" / "mnist.h5")
        assert len(open_dataset(path).train) == 12
        (source / "t10k-images-idx3-ubyte.gz").unlink()
        with pytest.raises(BadInput, match=r"t10k-images.*cannot be downloaded.*404.*--source"):
            preparation.prepare("mnist", None, path)
        server.shutdown()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"\0\0\x08\x01" + raw[4:], ["magic number 0x0801", "right is 0x0803"]),
        (lambda raw: raw[:-1], ["torn", "9423 bytes", "promises 9424"]),
        (lambda raw: raw + b"x", ["torn"]),
        (lambda raw: raw[:10], ["torn"]),
        (lambda raw: raw[:2], ["magic number"]),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), ["MD5"]),
        (lambda raw: gzip.compress(raw)[:-20], ["cannot be unpacked"]),
        (lambda raw: b"\x1f\x8b" + raw, ["cannot be unpacked"]),
    ],
)
def test_a_damaged_source_is_named(source, damage, words):
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(BadInput) as error:
        preparation.prepare("mnist", source, source / "mnist.h5")
    assert all(word in str(error.value) for word in ["train-images", *words]), error.value
    assert not (source / "mnist.h5").exists()


def test_a_source_that_lacks_a_file_and_an_output_that_cannot_be(source):
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadInput, match="t10k-labels"):
        preparation.prepare("mnist", source, source / "mnist.h5")
    (source / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        preparation.prepare("digits", None, source / "file" / "digits.h5")


def test_digits_are_fixed_stratified_and_complete(digits):
    data = open_dataset(digits)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert all(34 <= count <= 38 for count in np.bincount(data.test.labels))
    seen = {image.tobytes() for part in (data.train, data.test) for image in part.images}
    assert len(seen) == 1797
    images, labels = data.train.batch(np.array([3, 0]), torch.device("cpu"))
    assert images.shape == (2, 1, 28, 28)
    assert 0 <= images.min() <= images.max() <= 1
    assert labels.tolist() == data.train.labels[[3, 0]].tolist()


def damaged(digits, tmp_path, change):
    path = tmp_path / "damaged.h5"
    path.write_bytes(digits.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def set_label(value):
    def change(file):
        file["test/labels"][7] = value

    return change


def replace(name, array, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, data=array, **options)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("test"), ["test/images", "missing"]),
        (lambda file: file.__delitem__("train/labels"), ["train/labels", "missing"]),
        (lambda file: file.attrs.__delitem__("classes"), ["classes", "missing"]),
        (set_label(10), ["test/labels", "10", "0 to 9"]),
        (set_label(-1), ["test/labels", "-1"]),
        (replace("train/images", np.zeros((1437, 28, 28), np.uint8)), ["train/images", "N x C x H x W"]),
        (replace("train/images", np.zeros((1437, 1, 28, 28), np.uint8), chunks=True), ["contiguous"]),
        (replace("train/labels", np.zeros(5, np.int64)), ["train/labels", "(5,)"]),
        (replace("test/images", np.zeros((360, 1, 8, 8), np.uint8)), ["differ"]),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(digits, tmp_path, change, words):
    path = damaged(digits, tmp_path, change)
    with pytest.raises(BadInput) as error:
        open_dataset(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


def test_a_missing_foreign_or_truncated_file_is_refused(digits, tmp_path):
    foreign, torn = tmp_path / "foreign.h5", tmp_path / "torn.h5"
    foreign.write_text("not HDF5")
    torn.write_bytes(digits.read_bytes()[:500_000])
    for path, words in ((tmp_path / "no.h5", "no such data file"), (foreign, "HDF5"), (torn, "HDF5")):
        with pytest.raises(BadInput, match=words):
            open_dataset(path)


@given(
    samples=st.integers(1, 300),
    share=st.integers(1, 20),
    m=st.integers(1, 4),
    passes=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_a_pass_covers_what_it_promises_once_whatever_m(samples, share, m, passes, seed):
    size = share * m
    if size > samples:
        with pytest.raises(BadInput, match="training set has"):
            MiniBatches(samples, size, seed=seed, replica=0, m=m)
        return
    whole = MiniBatches(samples, size, seed=seed, replica=1)
    ranks = [MiniBatches(samples, size, seed=seed, replica=1, place=place, m=m) for place in range(m)]
    assert samples // size == whole.B
    for done in range(passes):
        seen = []
        for step in range(done * whole.B, (done + 1) * whole.B):
            parts = [rank.indices(step) for rank in ranks]
            assert [len(part) for part in parts] == [share] * m
            assert np.array_equal(np.concatenate(parts), whole.indices(step))
            seen += whole.indices(step).tolist()
        assert len(set(seen)) == len(seen) == whole.B * size
        assert set(seen) <= set(range(samples))


def test_replicas_and_passes_have_orders_of_their_own():
    first, second = (MiniBatches(1000, 100, seed=0, replica=a) for a in range(2))
    assert not np.array_equal(first.indices(0), second.indices(0))
    assert not np.array_equal(first.indices(0), first.indices(10))
    # any step at any time, as a resumed run asks for it
    assert np.array_equal(MiniBatches(1000, 100, seed=0, replica=0).indices(37), first.indices(37))


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused():
    with pytest.raises(BadInput, match="65 does not divide among the 2 ranks of a replica; nearest: 64 or 66"):
        MiniBatches(1000, 65, seed=0, replica=0, m=2)


@given(samples=st.integers(1, 200), size=st.integers(1, 30), ranks=st.integers(1, 7), limit=st.integers(1, 40))
def test_a_sweep_meets_every_sample_once(samples, size, ranks, limit):
    everyone = np.concatenate([i for rank in range(ranks) for i in shares(samples, size, rank, ranks)])
    assert sorted(everyone) == list(range(samples))
    some = [i for rank in range(ranks) for i in shares(samples, size, rank, ranks, limit)]
    assert len(some) == min(limit, -(-samples // size))
    together = np.concatenate(some)
    assert len(set(together.tolist())) == len(together)
