"""The published raw files of the data sets, small, and strategies that damage them, as fuzz_files does."""

import functools
import gzip
import io
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from faults.fuzz_files import MALICE, Malice, damaged, data_set
from helpers import raw
from helpers.idx import idx
from hypothesis import strategies as st
from scipy.io import savemat


@functools.cache
def source(name, version="binary"):
    """The raw files of a data set as they are published, small, by path."""
    if name == "mnist":
        arrays = {"images-idx3": np.zeros((4, 28, 28), np.uint8), "labels-idx1": np.zeros(4, np.uint8)}
        return {f"raw/{part}-{kind}-ubyte": idx(array) for part in ("train", "t10k") for kind, array in arrays.items()}
    if name == "svhn":
        with tempfile.TemporaryDirectory() as folder:
            raw.svhn(Path(folder), (6, 4, 4))
            return {f"raw/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}
    classes = int(name.removeprefix("cifar"))
    return {f"raw/{path}": content for path, content in getattr(raw, version)(raw.cifar(classes, 4), classes).items()}


def archived(members, pack="w:gz"):
    """The bytes of an archive of (name, content) or TarInfo."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=pack) as tar:
        for name, content in members:
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def linked(kind, target, name):
    """An archive whose file is a link out of it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return stream.getvalue()


def array(dtype, shape):
    """A pickle's array that claims a shape, and has no content."""
    return Malice(np.ndarray, shape, dtype)


@st.composite
def damaged_pickle(draw, content, key):
    """A file of CIFAR's python version that is none."""
    table = pickle.loads(content)
    kind = draw(st.sampled_from(["malice", "value", "drop", "opcode", "other"]))
    odd = [*MALICE, array("u1", (10**6, 3072)), array("u1", (10**12, 3072)), array("O", (4, 3072)), None, [], "x"]
    odd += [
        np.zeros((4, 3072)),
        np.zeros((4, 3072), object),
        np.zeros((4, 3071), np.uint8),
        np.zeros(4, "S3"),
        [[1], 2],
    ]
    odd += [[10**30] * 4, [-1] * 4, [10] * 4, [1.5] * 4, {}]
    if kind in ("malice", "value"):
        table[draw(st.sampled_from(sorted(table)))] = draw(st.sampled_from(MALICE if kind == "malice" else odd))
    elif kind == "drop":
        del table[draw(st.sampled_from(sorted(table)))]
    elif kind == "opcode":
        bombs = [
            b"\x80\x02Nr\xff\xff\xff\x7f.",
            b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
            b"(" * 10**6,
            b"\x80\x02" + b"]" * 10**5,
        ]
        bombs += [
            b"\x80\x02" + b"]" + b"(2t" * 60 + b".",
            b"c__builtin__\neval\n.",
            b"cos\nsystem\n(S'touch executed'\ntR.",
        ]
        bombs += [
            b"\x80\x02cnumpy\nndarray\nK\x05\x85R.",
            b"\x80\x02cnumpy\nload\n(Vx\ntR.",
            b"p9999999999\n.",
            b".",
            b"\x80\x63.",
        ]
        return draw(st.sampled_from(bombs))
    else:
        return pickle.dumps(draw(st.sampled_from([None, 3, [], [table], {b"data": table}])))
    return pickle.dumps(table, draw(st.sampled_from([0, 2, 4])))


def damaged_matlab():
    """A MATLAB file that is not SVHN's."""
    X, y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
    odd = [X[..., :0], X[0], X.astype(float), X.astype(bool), np.array("text"), np.array([[1, "a"]], object), {"a": X}]
    tables = [{"X": value, "y": y} for value in odd]
    odd = [y * 0, y * 11, y[:2], y + 0.5, y.astype(float), np.array("text"), {"a": 1}, np.zeros((0, 0))]
    tables += [{"X": X, "y": value} for value in odd] + [{"X": X}, {"y": y}, {}, {"x": X, "Y": y}]
    contents = [b"MATLAB 7.3 MAT-file".ljust(116) + b"\0" * 8 + b"\0\2IM" + data_set()]
    for table in tables:
        for options in ({}, {"do_compression": True}):
            stream = io.BytesIO()
            savemat(stream, table, **options)
            contents.append(stream.getvalue())
    return st.sampled_from(contents)


def bombs(name):
    """Small files that unpack to gigabytes, or say so."""
    zeros = gzip.compress(bytes(1 << 24)) * 128
    huge = tarfile.TarInfo(f"folder/{name}")
    huge.size = 10**12
    sparse = tarfile.TarInfo(f"folder/{name}")
    sparse.pax_headers = {"GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    return [
        zeros,
        huge.tobuf(),
        gzip.compress(huge.tobuf()),
        gzip.compress(sparse.tobuf(tarfile.PAX_FORMAT) + bytes(1024)),
    ]


@st.composite
def damaged_source(draw, name):
    """A data set's raw files, by path, in a folder or an archive, of which one is damaged."""
    version = draw(st.sampled_from(["binary", "python"])) if name.startswith("cifar") else "binary"
    files = dict(source(name, version))
    path = draw(st.sampled_from(sorted(files)))
    choices = [damaged(files[path]), damaged(files[path])]
    if version == "python":
        choices += [damaged_pickle(files[path], name)] * 2
    elif name == "svhn":
        choices += [damaged_matlab()] * 2
    files[path] = draw(st.one_of(choices) | st.sampled_from([None, b""]))
    if name == "mnist" and files[path] is not None and draw(st.booleans()):
        packed = gzip.compress(files.pop(path))
        files[f"{path}.gz"] = draw(st.just(packed) | damaged(packed) | st.sampled_from(bombs(path)[:1]))
    if name.startswith("cifar") and files[path] is not None and draw(st.booleans()):
        members = [(path.rpartition("/")[2], content) for path, content in files.items()]
        packed = archived(members, draw(st.sampled_from(["w:gz", "w"])))
        odd = [linked(tarfile.SYMTYPE, "/etc/passwd", members[0][0]), linked(tarfile.FIFOTYPE, "", members[0][0])]
        packed = draw(st.just(packed) | damaged(packed) | st.sampled_from([*bombs(members[0][0]), *odd]))
        return {f"raw/cifar-{name[5:]}-{version}.tar.gz": packed}
    return files
