"""The published raw files of the data sets, small, and strategies that damage them, as fuzz_files does."""

import bz2
import functools
import gzip
import io
import lzma
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
from faults.fuzz_files import MALICE, Malice, damaged, data_set
from helpers import raw
from helpers.damage import claim, external, link
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


PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def zipped(members):
    """The bytes of a .zip of (name, content)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(f"folder/{name}", content)
    return stream.getvalue()


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
        suffix = draw(st.sampled_from(sorted(PACKED)))
        packed = PACKED[suffix](files.pop(path))
        files[path + suffix] = draw(st.just(packed) | damaged(packed) | st.sampled_from(bombs(path)[:1]))
    if name == "mnist" and draw(st.booleans()):
        rename = draw(st.sampled_from([("-idx", ".idx"), ("raw/", "raw/MNIST/raw/"), ("ubyte", "ubyte (1)")]))
        files = {path.replace(*rename): content for path, content in files.items()}
    if name.startswith("cifar") and files[path] is not None and draw(st.booleans()):
        members = [(path.rpartition("/")[2], content) for path, content in files.items()]
        suffix = draw(st.sampled_from(["tar.gz", "tar.xz", "tar.bz2", "tar", "zip"]))
        pack = "w:" + suffix.removeprefix("tar").removeprefix(".")
        packed = zipped(members) if suffix == "zip" else archived(members, pack)
        odd = [linked(tarfile.SYMTYPE, "/etc/passwd", members[0][0]), linked(tarfile.FIFOTYPE, "", members[0][0])]
        packed = draw(st.just(packed) | damaged(packed) | st.sampled_from([*bombs(members[0][0]), *odd]))
        return {f"raw/cifar-{name[5:]}-{version}.{suffix}": packed}
    return files


# a data set of the user's own

OWN_NAMES = [
    "{part}_{kind}",
    "{part}/{kind}",
    "{kind}_{part}",
    "{part}{kind}",
    "{kind}",
    "{part}_set_{kind}",
    "a/{part}",
]
OWN_KINDS = [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "target"), ("images", "images")]


@st.composite
def own_arrays(draw):
    """Arrays of a data set by name, with one thing or two that may be wrong."""
    form, kinds = draw(st.sampled_from(OWN_NAMES)), draw(st.sampled_from(OWN_KINDS))
    shapes = [(), (3,), (1,), (4,), (13,), (2, 2)]
    channels, last = draw(st.sampled_from(shapes)), draw(st.booleans())
    arrays = {}
    for i, (part, count) in enumerate((("train", 6), (draw(st.sampled_from(["test", "val", "more", "Train"])), 4))):
        images = np.random.default_rng(i).integers(0, 256, (count, *channels, 9, 10), np.uint8)
        pair = [np.moveaxis(images, 1, -1) if last and channels else images, np.arange(count) % 2]
        which = draw(st.sampled_from([0, 1, None, None]))
        if which is not None:
            pair[which] = draw(st.sampled_from(ODD_IMAGES if which == 0 else ODD_LABELS))(pair[which])
        arrays.update({form.format(part=part, kind=kind): array for kind, array in zip(kinds, pair, strict=True)})
    return arrays


ODD_IMAGES = [
    *(lambda x, dtype=dtype: x.astype(dtype) for dtype in ("int8", "u2", ">i4", "f2", "f4", "f8", "c8", "bool", "S3")),
    *(lambda x, by=by: x / by for by in (255, np.float32(255), 256, 128, 0.5, -1.0)),
    *(lambda x, at=at: x[:at] for at in (0, 1, 3, -1)),
    *(lambda x, value=value: np.full(x.shape, value) for value in (0, 1, 255, 256, -1, np.nan, np.inf, 1e308, 0.5)),
    lambda x: x.reshape(len(x), -1),
    lambda x: x[:, :1],
    lambda x: x.T,
    lambda x: np.zeros(()),
    lambda x: x.astype(object),
    lambda x: np.zeros(len(x), [("a", "u1"), ("b", "f4")]),
]
ODD_LABELS = [
    *(
        lambda y, dtype=dtype: y.astype(dtype)
        for dtype in ("u1", ">i2", "f4", "f8", "bool", "S3", "U3", "c16", "M8[s]")
    ),
    *(lambda y, value=value: y + value for value in (-1, 1, 2, 10**6, 2.0**62, 0.5, np.nan, np.inf)),
    *(lambda y, at=at: y[:at] for at in (0, 1, -1)),
    lambda y: y[:, None],
    lambda y: y[None],
    lambda y: np.eye(2)[y],
    lambda y: np.ones((len(y), 2)),
    lambda y: y * 0,
    lambda y: y.astype(object),
    lambda y: np.array("text"),
]


@st.composite
def own_source(draw):
    """Files of a data set of the user's own, by path, as HDF5, .npz, .npy or .mat, whole or damaged."""
    arrays = draw(own_arrays())
    kind = draw(st.sampled_from(["h5", "h5", "npz", "npz", "npy", "mat", "txt"]))
    files = {f"raw/mine.{kind}": b"1,2,3\n"}
    if kind == "h5":
        stream, options = io.BytesIO(), draw(st.sampled_from([{}, {"chunks": True, "compression": "gzip"}]))
        with h5py.File(stream, "w") as file:
            for name, array in arrays.items():
                if array.dtype.kind not in "UOM":
                    file.create_dataset(name, data=array, **(options if array.size and array.ndim else {}))
            draw(st.sampled_from([lambda file: None, *OWN_CHANGES]))(file)
        files = {"raw/mine.h5": stream.getvalue()}
    elif kind == "npz":
        stream = io.BytesIO()
        draw(st.sampled_from([np.savez, np.savez_compressed]))(stream, **arrays)
        files = {"raw/mine.npz": stream.getvalue()}
    elif kind == "npy":
        files = {}
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            files[f"raw/{name.replace('/', '_')}.npy"] = stream.getvalue()
    elif kind == "mat":
        stream = io.BytesIO()
        right = {
            name.replace("/", "_").lstrip("_"): array for name, array in arrays.items() if array.dtype.kind in "iuf"
        }
        savemat(stream, right)
        files = {"raw/mine.mat": stream.getvalue()}
    path = draw(st.sampled_from(sorted(files)))
    files[path] = draw(st.just(files[path]) | st.just(files[path]) | damaged(files[path]))
    return files


def matlabs(file):
    for name in ("train_images", "train_labels", "x_train"):
        if name in file:
            file[name].attrs["MATLAB_class"] = "uint8"


OWN_CHANGES = [
    claim("train_images", "u1", (10**12, 3, 9, 10), chunks=(10, 3, 9, 10)),
    claim("train/images", "u1", (6, 3, 9, 10)),
    claim("x_train", "f8", (10**7, 10**7), chunks=(10, 10)),
    external("train_labels", "i8", (6,)),
    link("train/labels", h5py.ExternalLink("/etc/passwd", "x")),
    link("test/images", h5py.SoftLink("/test/images")),
    matlabs,
]
