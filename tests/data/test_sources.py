"""CIFAR and SVHN from their raw formats, and the one line that answers a damaged file."""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from helpers import raw
from helpers.idx import idx
from scipy.io import loadmat, savemat

from parle_hpc.data import files, sources
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
@pytest.mark.parametrize(
    "where", ["archive", "folder of the archive", "unpacked", "folder of the unpacked", "one file"]
)
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
        source = tmp_path / folder / sorted(files)[-1] if where == "one file" else source
    found, checksum = reader(classes)(source)
    assert len(checksum) == 32
    for part, (images, labels) in expected(parts, classes).items():
        assert np.array_equal(found[part][0], images)
        assert np.array_equal(found[part][1], labels)
        assert found[part][1].dtype == np.int64


def labels_as(kind):
    """How a pickle may hold labels."""
    return {
        "ints": lambda labels: labels.tolist(),
        "NumPy integers": list,
        "small NumPy integers": lambda labels: list(labels.astype(np.uint8)),
        "tuple": lambda labels: tuple(labels.tolist()),
        "array": lambda labels: labels,
        "column": lambda labels: labels[:, None],
        "floats": lambda labels: labels.astype(float),
        "NumPy floats": lambda labels: list(labels.astype(np.float32)),
    }[kind]


LABELS = ["ints", "NumPy integers", "small NumPy integers", "tuple", "array", "column", "floats", "NumPy floats"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("order", ["C", "F", "strided", "read-only"])
def test_a_pickle_of_any_python_is_read(protocol, kind, order):
    parts = raw.cifar(10, 12)
    pixels, right = parts["test_batch"]
    array = np.array(pixels.reshape(12, -1), order="F" if order == "F" else "C")
    if order == "strided":
        array = np.repeat(array, 2, 0)[::2]
    array.flags.writeable = order != "read-only"
    content = pickle.dumps({b"data": array, b"labels": labels_as(kind)(right)}, protocol)
    images, labels = read_cifar_python(content, "labels", "test_batch")
    assert labels.dtype == np.int64
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
    monkeypatch.setattr(files, "UNPACKED", 4000)
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


def packed(files, folder, suffix):
    """The bytes of an archive of files as .tar.xz, .zip and so on are."""
    stream = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"{folder}/{name}", content)
        return stream.getvalue()
    mode = {".tar": "", ".tar.xz": "xz", ".txz": "xz", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tgz": "gz"}[suffix]
    with tarfile.open(fileobj=stream, mode=f"w:{mode}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.bz2", ".zip", ".tar", ".tgz", ".txz"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar_however_it_is_packed(tmp_path, suffix, version):
    parts = raw.cifar(10, 12)
    # what a Mac puts beside each file is not the file
    files = {**{f"._{name}": b"junk" for name in parts}, **getattr(raw, version)(parts, 10)}
    path = tmp_path / f"cifar-10-{version}{suffix}"
    path.write_bytes(packed(files, "cifar-10-batches-bin", suffix))
    (tmp_path / f"renamed{suffix}").write_bytes(path.read_bytes())
    for source in (path, tmp_path, tmp_path / f"renamed{suffix}"):
        found, _ = sources.cifar10(source)
        for part, (images, labels) in expected(parts, 10).items():
            assert np.array_equal(found[part][0], images)
            assert np.array_equal(found[part][1], labels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x28\xb5\x2f\xfdxxxx", "packed by Zstandard; unpack it"),
        (b"7z\xbc\xaf\x27\x1cxxxx", "packed by 7-Zip; unpack it"),
        (b"Rar!\x1a\x07xxxx", "packed by RAR; unpack it"),
        (b"\n<!DOCTYPE html>\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"PK\3\4junk", "torn or no archive|magic number 0x504b"),
        (b"\xfd7zXZ\0junk", "cannot be unpacked"),
        (b"BZh9junk", "cannot be unpacked"),
    ],
)
def test_what_it_is_instead_is_said(tmp_path, content, words):
    for name, read in (("cifar-10-python.tar.gz", sources.cifar10), ("train-images-idx3-ubyte.gz", sources.mnist)):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BadInput, match=words) as error:
            read(path)
        assert name in str(error.value)
        path.unlink()


def test_a_zip_takes_no_more_memory_than_any_data_set(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-binary.zip"
    path.write_bytes(packed({"test_batch.bin": bytes(5000)}, "x", ".zip"))
    monkeypatch.setattr(files, "UNPACKED", 4000)
    with pytest.raises(BadInput, match=r"cifar-10-binary.zip unpacks to more than 4,000 bytes"):
        sources.cifar10(path)


NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def mnist(monkeypatch):
    """The content of small IDX files by their published names, whose checksums stand for the right ones."""
    content = {}
    for name, count in zip(NAMES, (7, 7, 5, 5), strict=True):
        images = "images" in name
        content[name] = idx(raw.images(count, 0, 1, 28)[:, 0] if images else np.arange(count, dtype=np.uint8))
    pairs = [(name, hashlib.md5(content[name]).hexdigest()) for name in NAMES]
    monkeypatch.setattr(sources, "MNIST_FILES", {"train": pairs[:2], "test": pairs[2:]})
    return content


@pytest.mark.parametrize(
    ("where", "rename", "given"),
    [
        ("", lambda name: name, ""),
        ("", lambda name: name.replace("-idx", ".idx"), ""),
        ("", lambda name: f"{name} (1).gz", ""),
        ("", lambda name: f"{name}.xz", ""),
        ("", lambda name: name.upper(), ""),
        ("MNIST/raw/", lambda name: name, ""),
        ("MNIST/raw/", lambda name: f"{name}.gz", ""),
        ("MNIST/raw/", lambda name: name, "MNIST"),
        ("", lambda name: name, "train-images-idx3-ubyte"),
        ("", lambda name: f"{name.replace('-idx', '.idx')}.gz", "t10k-labels.idx1-ubyte.gz"),
    ],
)
def test_mnist_under_the_names_that_its_files_get(tmp_path, mnist, where, rename, given):
    pack = {".gz": gzip.compress, ".xz": lzma.compress}
    # torchvision's neighbour, with files of the same names
    for folder, change in (("FashionMNIST/raw/", lambda content: content[:-1] + b"x"), (where, bytes)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in mnist.items():
            new = rename(name)
            content = pack.get(new[-3:], bytes)(change(content))
            (tmp_path / folder / new).write_bytes(content)
            (tmp_path / folder / f"._{new}").write_bytes(b"what a Mac keeps beside a file")
    found, checksum = sources.mnist(tmp_path / given)
    assert np.array_equal(found["train"][0], raw.images(7, 0, 1, 28))
    assert found["test"][1].tolist() == [0, 1, 2, 3, 4]
    assert len(checksum.split()) == 4


@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_mnist_in_an_archive(tmp_path, mnist, suffix):
    (tmp_path / f"archive{suffix}").write_bytes(packed(mnist, "MNIST/raw", suffix))
    found, _ = sources.mnist(tmp_path / f"archive{suffix}")
    assert found["train"][1].tolist() == list(range(7))


@pytest.mark.parametrize("read", [sources.mnist, sources.cifar10, sources.cifar100, sources.svhn])
def test_a_place_that_is_not_there_or_holds_nothing_is_named(tmp_path, read):
    with pytest.raises(BadInput, match=f"--source {tmp_path}/nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=f"--source {tmp_path}/empty: ") as error:
        read(tmp_path / "empty")
    assert "such" not in str(error.value)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=f"--source {tmp_path}/pipe: neither a file nor a folder"):
        read(tmp_path / "pipe")
    (tmp_path / "some.bin").write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"some.bin"):
        read(tmp_path / "some.bin")


@pytest.mark.parametrize("labels", ["float64", "row", "from 0", "int16"])
@pytest.mark.parametrize("version", ["7", "7.3"])
def test_svhn_as_matlab_saves_it(tmp_path, labels, version):
    raw.svhn(tmp_path, (12, 11, 20))
    for path in tmp_path.iterdir():
        table = loadmat(path)
        change = {
            "float64": lambda y: y.astype(float),
            "row": lambda y: y.T.astype(float),
            "from 0": lambda y: y % 10,
            "int16": lambda y: y.astype(np.int16),
        }[labels]
        table = {"X": table["X"], "y": change(table["y"])}
        if version == "7":
            savemat(path, table)
            continue
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, array in table.items():
                file.create_dataset(name, data=array.T, compression="gzip")
                file[name].attrs["MATLAB_class"] = np.bytes_(str(array.dtype))
        content = path.read_bytes()
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(116) + b"\0" * 8 + b"\0\2IM" + content[128:])
    for given in ("", "test_32x32.mat"):
        found, _ = sources.svhn(tmp_path / given)
        assert np.array_equal(found["test"][0], raw.images(20, 2))
        assert found["test"][1].tolist() == [*range(1, 10), 0] * 2
        assert len(found["train"][1]) == 23


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
    X, y = np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [10]])
    for table, words in (
        ({"X": X}, "lacks 'y'"),
        ({"X": X[..., :1], "y": y}, "1 integers"),
        ({"X": X, "y": y + 1}, "2 to 11"),
        ({"X": X, "y": y + 0.5}, "2 integers; it holds 1.5"),
        ({"X": X, "y": np.array([[0], [10]])}, "0 to 10"),
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
