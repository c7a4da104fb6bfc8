"""CIFAR and SVHN from their raw formats, and the one line that answers a damaged file."""

import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
from helpers import raw

from parle_hpc.data import sources
from parle_hpc.data.formats import read_cifar_python, read_svhn
from parle_hpc.errors import BadInput

FOLDERS = {
    (10, "binary"): "cifar-10-batches-bin",
    (10, "python"): "cifar-10-batches-py",
    (100, "binary"): "cifar-100-binary",
    (100, "python"): "cifar-100-python",
}


def expected(parts, classes):
    names = list(parts)
    train = [parts[name] for name in names[:-1]]
    return {"train": tuple(np.concatenate(arrays) for arrays in zip(*train, strict=True)), "test": parts[names[-1]]}


def reader(classes):
    return {10: sources.cifar10, 100: sources.cifar100}[classes]


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("where", ["archive", "folder of the archive", "unpacked", "folder of the unpacked"])
def test_cifar_in_every_form(tmp_path, classes, version, where):
    parts, folder = raw.cifar(classes), FOLDERS[classes, version]
    files = getattr(raw, version)(parts, classes)
    source = path = tmp_path / f"cifar-{classes}-{version}.tar.gz"
    if "archive" in where:
        raw.archive(files, folder, path)
        source = path if where == "archive" else tmp_path
    else:
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_bytes(content)
        source = tmp_path / folder if where == "unpacked" else tmp_path
    found, checksum = reader(classes)(source)
    assert len(checksum) == 32
    for part, (images, labels) in expected(parts, classes).items():
        assert np.array_equal(found[part][0], images)
        assert np.array_equal(found[part][1], labels)
        assert found[part][1].dtype == np.int64


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_any_python_is_read(protocol):
    parts = raw.cifar(10)
    images, labels = read_cifar_python(raw.python(parts, 10, protocol)["test_batch"], "labels", "test_batch")
    assert np.array_equal(images, parts["test_batch"][0])
    assert np.array_equal(labels, parts["test_batch"][1])


class Malice:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.system, "touch {}"), (eval, "open('{}', 'w')"), (np.load, "{}")])
def test_a_pickle_cannot_run_anything(tmp_path, call):
    target = tmp_path / "ran"
    function, argument = call
    content = pickle.dumps({b"data": Malice(function, argument.format(target)), b"labels": []})
    with pytest.raises(BadInput, match="has no business in a data set"):
        read_cifar_python(content, "labels", "data_batch_1")
    assert not target.exists()


def without(name):
    return lambda files: {key: value for key, value in files.items() if key != name}


def changed(name, change):
    return lambda files: {**files, name: change(files[name])}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("data_batch_3.bin"), ["data_batch_3.bin", "missing"]),
        (changed("test_batch.bin", lambda b: b[:-1]), ["test_batch.bin is torn", "3073"]),
        (changed("test_batch.bin", lambda b: b""), ["test_batch.bin is torn", "0 bytes"]),
        (changed("data_batch_1.bin", lambda b: b"\x0a" + b[1:]), ["not CIFAR-10", "0 to 10"]),
    ],
)
def test_an_archive_that_is_not_cifar_10_is_named(tmp_path, damage, words):
    path = tmp_path / "cifar-10-binary.tar.gz"
    raw.archive(damage(raw.binary(raw.cifar(10), 10)), "cifar-10-batches-bin", path)
    with pytest.raises(BadInput) as error:
        sources.cifar10(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


@pytest.mark.parametrize("damage", [lambda b: b[:-3000], lambda b: b"junk" + b, lambda b: b[:5], lambda b: b""])
def test_a_torn_archive_is_named(tmp_path, damage):
    path = raw.archive(raw.binary(raw.cifar(10), 10), "x", tmp_path / "cifar-10-binary.tar.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=r"torn or no archive|cannot be unpacked"):
        sources.cifar10(path)


def test_the_wrong_archive_and_an_empty_place_are_named(tmp_path):
    wrong = raw.archive(raw.binary(raw.cifar(100), 100), "x", tmp_path / "cifar-100-binary.tar.gz")
    with pytest.raises(BadInput, match=r"is not CIFAR-10: data_batch_1.bin"):
        sources.cifar10(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"neither cifar-10-binary.tar.gz nor"):
        sources.cifar10(tmp_path / "empty")
    with pytest.raises(BadInput, match="no such file or folder"):
        sources.cifar100(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # an entry of a table that would be as long as its number
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "LONG_BINPUT 2147483647"),
        (b"p9999999999\n.", "PUT 9999999999"),
        # an array whose content never comes would show what is in memory
        (pickle.dumps({b"data": Malice(np.ndarray, (4, 3072), "u1"), b"labels": [0] * 4}), "test_batch"),
        (pickle.dumps({b"data": np.zeros((4, 3072), object), b"labels": [0] * 4}), "test_batch"),
    ],
)
def test_a_pickle_takes_no_more_memory_than_it_brings(content, words):
    with pytest.raises(BadInput, match=words):
        read_cifar_python(content, "labels", "test_batch")


def test_what_unpacks_to_more_than_any_data_set_is_refused(tmp_path, monkeypatch):
    path = raw.archive({"x": bytes(5000)}, "x", tmp_path / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(sources, "UNPACKED", 4000)
    with pytest.raises(BadInput, match=r"cifar-10-binary.tar.gz unpacks to more than 4,000 bytes"):
        sources.cifar10(path)


def test_a_sparse_file_that_promises_more_than_there_is_is_refused(tmp_path):
    sparse = tarfile.TarInfo("x/test_batch.bin")
    sparse.pax_headers = {"GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    path = tmp_path / "cifar-10-binary.tar"
    path.write_bytes(sparse.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(BadInput, match="longer than the archive"):
        sources.cifar10(path)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({b"labels": [0]}, "KeyError"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "KeyError"),
        ({b"data": np.zeros((1, 3072)), b"labels": [0]}, "float64"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]}, "3071"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0, 1]}, r"\(2,\)"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["a"]}, "1 integers"),
        ([1, 2], "AttributeError"),
    ],
)
def test_a_python_file_that_is_not_cifar_is_named(table, words):
    with pytest.raises(BadInput, match=f"data_batch_1.*{words}"):
        read_cifar_python(pickle.dumps(table), "labels", "data_batch_1")


def test_svhn_joins_train_and_extra_and_ten_is_zero(tmp_path):
    train, extra, test = raw.svhn(tmp_path)
    found, checksums = sources.svhn(tmp_path)
    assert len(checksums.split()) == 3
    assert np.array_equal(found["train"][0], np.concatenate([train[0], extra[0]]))
    assert np.array_equal(found["train"][1], np.concatenate([train[1], extra[1]]) % 10)
    assert np.array_equal(found["test"][0], test[0])
    assert set(found["test"][1].tolist()) == set(range(10))


def test_svhn_that_is_not_svhn_is_named(tmp_path):
    raw.svhn(tmp_path)
    whole = (tmp_path / "test_32x32.mat").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"junk" * 100, gzip.compress(whole)):
        with pytest.raises(BadInput, match=r"test_32x32.mat"):
            read_svhn(content, "test_32x32.mat")
    from scipy.io import savemat

    X, y = np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [10]])
    for table, words in (
        ({"X": X}, "lacks 'y'"),
        ({"X": X[..., :1], "y": y}, "1 integers"),
        ({"X": X, "y": y + 1}, "2 to 11"),
        ({"X": X.astype(float), "y": y}, "float64"),
    ):
        savemat(tmp_path / "odd.mat", table)
        with pytest.raises(BadInput, match=words):
            read_svhn((tmp_path / "odd.mat").read_bytes(), "odd.mat")
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(BadInput, match=r"extra_32x32.mat is there|none of extra_32x32.mat"):
        sources.svhn(tmp_path)


def test_a_download_is_checked(tmp_path, monkeypatch):
    path = raw.archive(raw.binary(raw.cifar(10), 10), "x", tmp_path / "cifar-10-binary.tar.gz")
    raw.svhn(tmp_path)
    with raw.serving(tmp_path) as here:
        monkeypatch.setattr(sources, "CIFAR_MIRRORS", (here,))
        monkeypatch.setattr(sources, "SVHN_MIRRORS", (here,))
        # the small archives are not the published ones
        with pytest.raises(BadInput, match=r"cifar-10-binary.tar.gz arrived damaged: MD5"):
            sources.cifar10(None)
        with pytest.raises(BadInput, match=r"train_32x32.mat arrived damaged: MD5"):
            sources.svhn(None)
        _, checksum = sources.cifar10(path)
        monkeypatch.setattr(sources.cifar10, "md5", checksum)
        parts, _ = sources.cifar10(None)
        assert len(parts["train"][1]) == 300
