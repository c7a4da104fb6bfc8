"""Small right files of every kind that the programs read, and strategies that damage them."""

import functools
import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from helpers import raw
from helpers.damage import attribute, claim, external, forget, link, put
from hypothesis import strategies as st

from parle_hpc.models import build
from parle_hpc.settings import load, write

COUNTS = {"train": 12, "test": 6}


@st.composite
def damaged(draw, content):
    """Bytes with some flipped, cut off, put in, overwritten or repeated, or other bytes altogether."""
    kind = draw(st.sampled_from(["flips", "flips", "cut", "cut", "insert", "overwrite", "repeat", "replace"]))
    if kind == "replace" or not content:
        return draw(st.binary(max_size=64))
    changed = bytearray(content)
    position = draw(st.integers(0, len(content) - 1) | st.integers(0, min(2048, len(content) - 1)))
    if kind == "flips":
        for at in draw(st.lists(st.integers(0, len(content) - 1) | st.just(position), min_size=1, max_size=8)):
            changed[at] ^= draw(st.integers(1, 255))
    elif kind == "cut":
        del changed[position:]
    elif kind == "insert":
        changed[position:position] = draw(st.binary(min_size=1, max_size=32))
    elif kind == "overwrite":
        length = draw(st.integers(1, 64))
        changed[position : position + length] = draw(st.sampled_from([b"\0", b"\xff"])) * length
    else:
        changed += changed[position:]
    return bytes(changed)


# a prepared data set


@functools.cache
def data_set():
    """A prepared data set in digits' form, with 12 and 6 images, and what every preprocessing needs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.h5"
        with h5py.File(path, "w") as file:
            mean, std = np.array([0.3]), np.array([0.25])
            file.attrs.update(name="digits", classes=10, checksum="none", mean=mean, std=std)
            for i, (part, count) in enumerate(COUNTS.items()):
                file[f"{part}/images"] = raw.images(count, i, 1, 28)
                file[f"{part}/labels"] = np.arange(count) % 10
            file["zca/mean"], file["zca/matrix"] = np.zeros(784), np.eye(784)
        return path.read_bytes()


def virtual(name, dtype, shape):
    def change(file):
        del file[name]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource("elsewhere.h5", "x", shape)
        file.create_virtual_dataset(name, layout)

    return change


def both(*changes):
    def change(file):
        for each in changes:
            each(file)

    return change


IMAGES, LABELS = np.zeros((12, 1, 28, 28), np.uint8), np.zeros(12, np.int64)
CHANGES = [
    *(forget(name) for name in ("train", "test", "train/images", "test/labels", "name", "classes", "mean", "std")),
    *(forget(name) for name in ("zca", "zca/mean", "zca/matrix")),
    *(put(name, None) for name in ("train/images", "test/labels", "zca/matrix")),
    *(put("train/images", np.zeros(shape, np.uint8)) for shape in ((12, 28, 28), (12, 0, 28, 28), (0, 1, 28, 28), ())),
    *(put("train/images", IMAGES.astype(dtype)) for dtype in ("int8", "float32", "uint16", "S1")),
    *(put("test/images", np.zeros((6, *shape), np.uint8)) for shape in ((3, 28, 28), (1, 8, 8))),
    put("train/images", IMAGES, chunks=True, compression="gzip"),
    *(put("train/images", np.zeros((12, *shape), np.uint8)) for shape in ((28, 28, 1), (28, 28, 3), (2, 28, 28))),
    both(forget("checksum"), put("train/images", IMAGES, chunks=True)),
    both(forget("checksum"), put("train/images", np.zeros((12, 28, 28, 1), np.uint8))),
    both(forget("checksum"), attribute("name", "../mine"), put("train/labels", LABELS.astype("int32"))),
    put("train/images", h5py.Empty("u1")),
    *(put("train/labels", LABELS + value) for value in (-1, 10, 2**62)),
    *(put("train/labels", LABELS.astype(dtype)) for dtype in ("int32", "float64", "uint64", ">i8", "S3")),
    *(put("train/labels", np.zeros(shape, np.int64)) for shape in (5, 0, (12, 1), ())),
    put("train/labels", h5py.Empty("i8")),
    put("train/labels", "text"),
    *(attribute("classes", value) for value in (0, -1, 1, 9, 2**31, 2**62, 10.5, np.nan, "ten", [10, 10], b"\xff")),
    *(attribute("classes", value) for value in (h5py.Empty("i8"), 10**6, 10**7, "10", True)),
    *(attribute("name", value) for value in ("mnist", "", 5, b"\xff\xfe", ["a", "b"], "x" * 5000, h5py.Empty("S1"))),
    *(
        attribute(name, value)
        for name in ("mean", "std")
        for value in ([np.nan], [np.inf], [0.0], [], [0.1, 0.2], "text", [[0.1]], 0.5, h5py.Empty("f8"), [-1.0])
    ),
    *(put("zca/matrix", value) for value in (np.eye(783), np.full((784, 784), np.nan), np.eye(784, dtype=int), 3.0)),
    *(put("zca/mean", value) for value in (np.zeros(783), np.full(784, np.inf), "text", np.zeros((784, 1)))),
    *(link("train/images", h5py.ExternalLink(name, "x")) for name in ("missing.h5", "/etc/passwd", "data.h5", ".")),
    *(link("test/labels", h5py.SoftLink(name)) for name in ("/missing", "/test/labels", "/train", "/")),
    *(link("train", h5py.ExternalLink(name, "/")) for name in ("missing.h5", "data.h5")),
    external("train/images", "u1", (12, 1, 28, 28)),
    external("train/labels", "i8", (12,)),
    virtual("train/images", "u1", (12, 1, 28, 28)),
    virtual("train/labels", "i8", (12,)),
    claim("train/images", "u1", (10**12, 1, 28, 28)),
    claim("train/labels", "i8", (10**13,), chunks=(1000,)),
    claim("zca/matrix", "f8", (10**7, 10**7), chunks=(10, 10)),
]


@st.composite
def damaged_data_set(draw):
    """A well-formed HDF5 file that is not the data set it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.h5"
        path.write_bytes(data_set())
        with h5py.File(path, "r+") as file:
            draw(st.sampled_from(CHANGES))(file)
        return path.read_bytes()


# the folder of a run


@functools.cache
def weights(seed):
    torch.manual_seed(seed)
    stream = io.BytesIO()
    torch.save(build("lenet", num_classes=10, in_channels=1).state_dict(), stream)
    return stream.getvalue()


@functools.cache
def run_folder(name, seed=0, preprocessing="none"):
    """The files of a finished run of LeNet on data.h5, by path."""
    given = ["--data.path", "data.h5", "--data.preprocessing", preprocessing, "--data.batch_size", "4", "--run.seed"]
    settings = load([*given, str(seed), "--replicas", "1"])
    with tempfile.TemporaryDirectory() as folder:
        write(settings, Path(folder) / "config.toml")
        text = (Path(folder) / "config.toml").read_bytes()
    events = [{"event": "start", "seconds": 0.1, "round": 0, "step": 0, "passes": 0, "ranks": 1}]
    for t in range(3):
        common = {"seconds": 1.0 + t, "round": t, "step": 25 * (t + 1), "passes": 8.0 * (t + 1)}
        took = {"coupling_seconds": 0.01, "coupling_wait_seconds": 0.001, "samples_per_second": 100.0}
        events.append({"event": "round", **common, "gamma": 100.0, "rho": 1.0, "lr": 0.1, **took})
        errors = {"val_error": 50.0 - t, "val_loss": 1.0, "train_error": 49.0 - t, "train_loss": 1.0, "spread": 0.1}
        events.append({"event": "validate", **common, **errors})
    events[-1]["replica_error"] = [48.0]
    events.append({"event": "end", **common, "val_error": 48.0})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    files = {"config.toml": text, "metrics.jsonl": lines.encode(), "reference.pt": weights(seed)}
    return {f"{name}/{file}": content for file, content in files.items()}


@st.composite
def damaged_metrics(draw, content):
    """metrics.jsonl with a value, a key, a line, or several, that no run writes."""
    lines = [json.loads(line) for line in content.splitlines()]
    for _ in range(draw(st.integers(1, 2))):
        event = lines[draw(st.integers(0, len(lines) - 1))]
        key = draw(st.sampled_from(sorted(event))) if event else "event"
        odd = [
            None,
            "x",
            "",
            [],
            {},
            [1, 2],
            -1,
            0,
            1e308,
            float("nan"),
            float("inf"),
            True,
            10**400,
            {"a": 1},
            "validate",
        ]
        if draw(st.booleans()):
            event[key] = draw(st.sampled_from(odd) | st.floats() | st.integers())
        else:
            event.pop(key, None)
    text = [json.dumps(line) for line in lines]
    odd = ["", "{", "[]", "3", "null", '"x"', "[" * 20_000, '{"event": ' * 20_000, "\0", "9" * 5000, "{}", "nan"]
    if draw(st.booleans()):
        text.insert(draw(st.integers(0, len(text))), draw(st.sampled_from(odd)))
    return "\n".join(text[: draw(st.integers(0, len(text)))]).encode() + draw(
        st.sampled_from([b"", b"\n", b"\n\n", b"\xff"])
    )


class Malice:
    """Unpickled, it runs what it was given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = "executed"  # the file that a pickle makes if anything of it is executed
MALICE = [Malice(os.system, f"touch {EVIL}"), Malice(eval, f"open('{EVIL}', 'w')"), Malice(Path, "x")]


@st.composite
def damaged_weights(draw, content):
    """reference.pt that torch can read, or half can, and is not the network's."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    name = draw(st.sampled_from(sorted(state)))
    kind = draw(st.sampled_from(["drop", "add", "shape", "type", "value", "other", "malice", "legacy", "huge"]))
    if kind == "drop":
        del state[name]
    elif kind == "add":
        state["more"] = state[name]
    elif kind == "shape":
        state[name] = state[name].unsqueeze(0)
    elif kind == "type":
        state[name] = draw(
            st.sampled_from([state[name].to(torch.complex64), state[name].long(), 3, "text", None, [1.0]])
        )
    elif kind == "value":
        state[name] = state[name] * draw(st.sampled_from([torch.nan, torch.inf, 1e38]))
    elif kind == "other":
        state = draw(
            st.sampled_from([None, 3, "text", [], {}, {3: 4}, [state], {"state": state}, torch.zeros(3), {"": 1}])
        )
    elif kind == "huge":
        state[name] = torch.zeros(1).expand(10**12)
    elif kind == "malice":
        state[name] = draw(st.sampled_from(MALICE))
        if draw(st.booleans()):
            return pickle.dumps(state[name])
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=kind != "legacy")
    return stream.getvalue()
