"""A data set of the user's own, in the forms in which people keep them, and the one line where it cannot be told."""

import gzip
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from helpers import raw
from helpers.idx import idx
from scipy.io import savemat

from parle_hpc.data.prepare import prepare
from parle_hpc.data.split import MiniBatches
from parle_hpc.data.store import open_dataset
from parle_hpc.errors import BadInput


def parts(channels=3, size=12, classes=5):
    """{part: (images, uint8 N x C x H x W, labels, int64)}; not square, so that no axis stands for another."""
    pairs = {}
    for i, (part, count) in enumerate((("train", 20), ("test", 10))):
        images = raw.images(count, i, channels, size)[:, :, :-2]
        # 0 and 255 are there
        images[0, 0, 0, :2] = 0, 255
        pairs[part] = images, np.arange(count) % classes
    return pairs


def last(images):
    return images.transpose(0, 2, 3, 1)


def same(array):
    return array


def named(form, images=same, labels=same):
    """{name: array} where {part} and {kind} stand in the form, with images and labels as they are changed."""

    def arrays(pairs):
        change = {"images": images, "labels": labels}
        return {
            form.format(part=part, kind=kind): change[kind](array)
            for part, pair in pairs.items()
            for kind, array in zip(change, pair, strict=True)
        }

    return arrays


def x_and_y(form, **words):
    """Arrays that are called x and y, or as `words` say."""
    words = {"images": "x", "labels": "y", "train": "train", "test": "test", **words}

    def arrays(pairs):
        return {
            form.format(part=words[part], kind=words[kind]): array
            for part, pair in pairs.items()
            for kind, array in zip(("images", "labels"), pair, strict=True)
        }

    return arrays


def one_hot(labels):
    return np.eye(5, dtype=np.float32)[labels]


GROUPS, FLAT = "{part}/{kind}", "{part}_{kind}"
FORMS = {
    "the trainer's": named(GROUPS),
    "N x H x W x C": named(GROUPS, last),
    "flat names": named(FLAT, last),
    "Keras": x_and_y("{kind}_{part}"),
    "capitals": x_and_y("{kind}_{part}", images="X", labels="Y"),
    "joined": x_and_y("{kind}{part}"),
    "joined words": x_and_y("{part}{kind}", images="images", labels="labels"),
    "camels": x_and_y("{part}{kind}", images="X", labels="Y"),
    "Coursera": x_and_y("{part}_set_{kind}"),
    "scikit-learn": x_and_y("{part}/{kind}", images="data", labels="target"),
    "other words": x_and_y("{part}ing_{kind}s", images="feature", labels="target"),
    "validation": x_and_y("{kind}_{part}", test="val"),
    "labels N x 1": named(GROUPS, last, lambda labels: labels[:, None]),
    "labels 1 x N": named(GROUPS, last, lambda labels: labels[None].astype(np.uint8)),
    "labels in floats": named(GROUPS, last, lambda labels: labels.astype(np.float64)),
    "one-hot": named(GROUPS, last, one_hot),
    "labels from 1": named(GROUPS, last, lambda labels: labels + 1),
    "int64": named(GROUPS, lambda images: images.astype(np.int64)),
    "big-endian": named(GROUPS, lambda images: images.astype(">u2"), lambda labels: labels.astype(">i4")),
    "whole floats": named(GROUPS, lambda images: images.astype(np.float32)),
    "float32 over 255": named(GROUPS, lambda images: images.astype(np.float32) / 255),
    "float64 over 255": named(GROUPS, lambda images: (images * np.float32(1 / 255)).astype(np.float64)),
    "float16 over 255": named(GROUPS, lambda images: (images / 255).astype(np.float16)),
    "Fortran's order": named(GROUPS, lambda images: np.asfortranarray(last(images))),
}


def is_right(path, pairs, classes=5):
    data = open_dataset(path, "mine", "standardize")
    assert (data.name, data.classes) == ("mine", classes)
    for part, (images, labels) in pairs.items():
        found = getattr(data, part)
        assert found.images.dtype == np.uint8
        assert np.array_equal(found.images, images)
        assert found.labels.dtype == np.int64
        assert np.array_equal(found.labels, labels)
    with h5py.File(path) as file:
        assert file["train/images"].chunks is None
        assert len(file.attrs["checksum"]) == 32
        assert file.attrs["mean"] == pytest.approx(pairs["train"][0].mean((0, 2, 3)) / 255)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_a_set_in_every_form(tmp_path, form, suffix):
    pairs, source = parts(), tmp_path / f"source.{suffix}"
    arrays = FORMS[form](pairs)
    if suffix == "npz":
        np.savez_compressed(source, **arrays)
    else:
        with h5py.File(source, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, chunks=True, compression="gzip", shuffle=True)
    is_right(prepare("mine", source, tmp_path / "out" / "mine.h5"), pairs)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_images_of_0_and_1_alone_are_black_and_white(tmp_path, dtype):
    pairs = {part: (images // 128, labels) for part, (images, labels) in parts().items()}
    np.savez(tmp_path / "a.npz", **named(FLAT, lambda images: images.astype(dtype))(pairs))
    whole = {part: (255 * images, labels) for part, (images, labels) in pairs.items()}
    is_right(prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5"), whole)


def test_gray_images_without_an_axis_of_channels(tmp_path):
    pairs = parts(1)
    np.savez(tmp_path / "a.npz", **named(FLAT, lambda images: images[:, 0])(pairs))
    is_right(prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5"), pairs)
    np.savez(tmp_path / "a.npz", **named(FLAT, last)(pairs))
    is_right(prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5"), pairs)


@pytest.mark.parametrize("channels", [2, 13])
def test_channels_that_cannot_be_told_are_asked_for(tmp_path, channels):
    pairs = parts(channels, size=16)
    for where, change in (("first", same), ("last", last)):
        np.savez(tmp_path / "a.npz", **named(FLAT, change)(pairs))
        with pytest.raises(BadInput, match=r"a.npz: train_images is \(20, .*say --channels first or --channels last"):
            prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5")
        is_right(prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5", where), pairs)


def test_a_channel_that_is_constant_and_images_that_are_tiny(tmp_path):
    """A picture's alpha, and 4 x 5 pixels."""
    pairs = {part: (images[:, :, :4, :5].copy(), labels) for part, (images, labels) in parts(4).items()}
    for images, _ in pairs.values():
        images[:, 3] = 255
    np.savez(tmp_path / "a.npz", **named(FLAT, last)(pairs))
    path = prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5", "last")
    assert open_dataset(path, "mine", "gcn").train.images.shape == (20, 4, 4, 5)
    with pytest.raises(BadInput, match=r"standard deviation is 0; take --data.preprocessing none or gcn, or leave the"):
        open_dataset(path, "mine", "standardize")
    part, batches = open_dataset(path, "mine").train, MiniBatches(np.arange(20), 5, seed=0, replica=0)
    assert raw.seen(part, batches.indices(0))[0].shape == (5, 4, 4, 5)


def test_files_of_a_folder_are_taken_together(tmp_path):
    pairs = parts()
    for form, folder in (("{part}_{kind}", "flat"), ("{kind}-{part}", "turned")):
        (tmp_path / folder).mkdir()
        for name, array in named(form, last)(pairs).items():
            np.save(tmp_path / folder / f"{name}.npy", array)
        (tmp_path / folder / "README.md").write_text("train images")
        is_right(prepare("mine", tmp_path / folder, tmp_path / "mine.h5"), pairs)
    # Coursera's: a file for each part; KMNIST's: one for each array, which has no name
    (tmp_path / "two").mkdir()
    (tmp_path / "four").mkdir()
    for part, (images, labels) in pairs.items():
        with h5py.File(tmp_path / "two" / f"{part}_signs.h5", "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"], file["list_classes"] = last(images), labels, np.arange(5)
        np.savez(tmp_path / "four" / f"k-{part}-imgs.npz", images)
        np.savez(tmp_path / "four" / f"k-{part}-labels.npz", labels)
    for folder in ("two", "four"):
        is_right(prepare("mine", tmp_path / folder, tmp_path / "mine.h5"), pairs)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (2, 3, 1, 0)])
def test_matlabs_reversed_axes_are_turned_back(tmp_path, order):
    """N x H x W x C, or H x W x C x N, as MATLAB shows it; h5py sees the axes of a -v7.3 file in reverse."""
    pairs = parts()
    with h5py.File(tmp_path / "mine.mat", "w", userblock_size=512) as file:
        for part, (images, labels) in pairs.items():
            for name, array in ((f"X_{part}", images.transpose(order)), (f"y_{part}", labels[:, None] + 1.0)):
                file[name] = array.T
                file[name].attrs["MATLAB_class"] = np.bytes_("uint8")
    is_right(prepare("mine", tmp_path / "mine.mat", tmp_path / "mine.h5"), pairs)


def test_what_hdf5_has_in_reverse_is_not_guessed(tmp_path):
    """MATLAB's h5write leaves no mark, and C x W x H x N may be either."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in named(FLAT, lambda images: last(images).T)(parts()).items():
            file[name] = array
    with pytest.raises(BadInput, match=r"holds 3 images, and there are 20 labels; np.moveaxis\(images, -1, 0\)"):
        prepare("mine", tmp_path / "a.h5", tmp_path / "mine.h5")


def test_matlabs_older_files(tmp_path):
    pairs = parts()
    arrays = named(FLAT, lambda images: images.transpose(2, 3, 1, 0), lambda labels: labels[:, None] + 1.0)(pairs)
    savemat(tmp_path / "a.mat", arrays, do_compression=True)
    is_right(prepare("mine", tmp_path / "a.mat", tmp_path / "mine.h5"), pairs)


@pytest.mark.parametrize("packed", [False, True])
def test_a_set_in_mnists_format(tmp_path, packed):
    """Fashion-MNIST, EMNIST (whose letters are numbered from 1) and others have the names of MNIST's files."""
    pairs = parts(1)
    for part, (images, labels) in pairs.items():
        word = {"train": "train", "test": "t10k" if packed else "test"}[part]
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", (labels + 1).astype(np.uint8))):
            name, content = f"emnist-letters-{word}-{kind}-ubyte", idx(np.ascontiguousarray(array))
            (tmp_path / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    is_right(prepare("mine", tmp_path, tmp_path / "out" / "mine.h5"), pairs)
    with pytest.raises(BadInput, match=r"under a name of its own|no train-images"):
        prepare("mnist", tmp_path, tmp_path / "out" / "mnist.h5")


def test_packings_that_cannot_be_read_are_said(tmp_path):
    whole = tmp_path / "a.h5"
    with h5py.File(whole, "w") as file:
        for name, array in named(GROUPS)(parts()).items():
            file[name] = array
    (tmp_path / "a.h5.gz").write_bytes(gzip.compress(whole.read_bytes()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(whole, "a.h5")
    with h5py.File(whole, "r+") as file:
        images = file["train/images"][...]
        del file["train/images"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(images.shape)
        plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # Blosc
        space = h5py.h5s.create_simple(images.shape)
        made = h5py.h5d.create(file["train"].id, b"images", h5py.h5t.NATIVE_UINT8, space, plan)
        made.write_direct_chunk((0, 0, 0, 0), images.tobytes())
    for name, words in (
        ("a.h5.gz", "is packed; unpack it first"),
        ("a.zip", "is a .zip of other files; unpack it first"),
        ("a.h5", "train/images is compressed by filter 32001, which HDF5 does not have .*h5repack -f GZIP=4"),
    ):
        with pytest.raises(BadInput, match=f"{name}:? .*{words}"):
            prepare("mine", tmp_path / name, tmp_path / "mine.h5")


def test_what_else_a_file_holds_is_left_alone(tmp_path):
    pairs = parts()
    arrays = {**named(FLAT)(pairs), "train_mean": np.zeros(3), "train_ids": np.arange(20), "images": np.zeros(3)}
    np.savez(tmp_path / "my_test_data_images.npz", **arrays)
    is_right(prepare("mine", tmp_path / "my_test_data_images.npz", tmp_path / "mine.h5"), pairs)


def test_a_lock_that_is_asked_for_is_named(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x_train"] = np.zeros(3)

    def refuses(*_, **__):
        raise BlockingIOError(11, "unable to lock file, errno = 11")

    monkeypatch.setattr(h5py, "File", refuses)
    with pytest.raises(BadInput, match=r"a.h5 cannot be locked here.*export HDF5_USE_FILE_LOCKING=FALSE$"):
        prepare("mine", tmp_path / "a.h5", tmp_path / "mine.h5")


def test_what_was_taken_how_is_said(tmp_path, capfd):
    pairs = {**parts(), "val": parts()["test"]}
    train, (images, labels) = pairs["train"], pairs["test"]
    pairs = {"train": (train[0], np.where(train[1] == 3, 2, train[1])), "test": (images, labels), "val": pairs["val"]}
    arrays = named(FLAT, lambda images: images / np.float32(255), lambda labels: labels + 1)(pairs)
    np.savez(tmp_path / "a.npz", **arrays)
    is_right(prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5"), {k: pairs[k] for k in ("train", "test")})
    said = capfd.readouterr().err
    assert "train is train_images and train_labels, test is test_images and test_labels; left out: val_images, " in said
    assert "pixels reach from 0 to 1: times 255" in said
    assert "labels reach from 1 to 5: each is one less" in said
    assert "no training image of class 3" in said


ODD = {
    "no test part": ({"train_images": 0, "train_labels": 1}, ["lacks images of test", "found: train_images, train_la"]),
    "no part": ({"images": 0, "labels": 1}, ["found: images, labels", "train_images, train_labels, test_images"]),
    "nothing": ({"a": 0}, ["found: a"]),
    "two that may be it": ({"x_train": 0, "train_x": 0, "y_train": 1}, ["both x_train and train_x"]),
    "flat": ({"train_images": np.zeros((20, 784), np.uint8)}, ["train_images is (20, 784)", "N x H x W x C"]),
    "counts": ({"train_labels": np.arange(19)}, ["20 images", "19 labels"]),
    "0 to 1 and not bytes": (
        {"train_images": np.random.default_rng(0).random((20, 3, 10, 12)), "test_images": np.zeros((10, 3, 10, 12))},
        ["train_images", "float64", "astype(np.uint8)"],
    ),
    "standardised": ({"train_images": np.linspace(-2, 2, 7200).reshape(20, 3, 10, 12)}, ["from -2 to 2"]),
    "16 bits": ({"train_images": np.full((20, 3, 10, 12), 4095, np.uint16)}, ["from 4095 to 4095", "// 16"]),
    "nan": ({"train_images": np.full((20, 3, 10, 12), np.nan)}, ["train_images", "nan"]),
    "blank": ({"train_images": np.zeros((20, 3, 10, 12), np.uint8)}, ["train_images", "0 alone"]),
    "two scales": ({"test_images": np.full((10, 3, 10, 12), 0.2, np.float32)}, ["train_images", "test_images", "1"]),
    "complex": ({"train_images": np.ones((20, 3, 10, 12), complex)}, ["complex128"]),
    "objects": ({"train_labels": np.array([{}] * 20, object)}, ["a.npz", "pickle"]),
    "text": ({"train_labels": np.array(["cat", "dog"] * 10)}, ["train_labels", "np.unique"]),
    "fractions": ({"train_labels": np.arange(20) / 2}, ["train_labels must be 20 integers", "0.5"]),
    "-1 and 1": ({"train_labels": np.array([-1, 1] * 10)}, ["from -1 to 4", "np.unique"]),
    "too large": ({"train_labels": np.arange(20) * 10}, ["reach to 190", "20 training images"]),
    "several classes": ({"train_labels": np.ones((20, 5))}, ["(20, 5)", "one class"]),
    "one class": ({"train_labels": np.zeros(20), "test_labels": np.zeros(10)}, ["all labels are 0"]),
    "sizes": ({"test_images": np.full((10, 3, 9, 12), 9, np.uint8)}, ["(3, 10, 12)", "(3, 9, 12)", "differ"]),
    "none": (
        {"test_images": np.ones((0, 3, 10, 12), np.uint8), "test_labels": np.ones(0, int)},
        ["test_labels is empty"],
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ODD)
def test_what_cannot_be_taken_without_loss_is_said(tmp_path, case):
    odd, words = ODD[case]
    right = named(FLAT)(parts())
    if not all(name in right and isinstance(array, np.ndarray) for name, array in odd.items()):
        odd = {name: parts()["train"][which] for name, which in odd.items()}
        right = {}
    np.savez(tmp_path / "a.npz", **{**right, **odd})
    with pytest.raises(BadInput) as error:
        prepare("mine", tmp_path / "a.npz", tmp_path / "mine.h5")
    assert all(word in str(error.value) for word in ["a.npz", *words]), error.value
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def unwritten(file):
    file.create_dataset("train/images", (20, 3, 10, 12), np.uint8)


def half_written(file):
    file.create_dataset("train/images", (20, 3, 10, 12), np.uint8, chunks=(5, 3, 10, 12))[:10] = 7


def virtual(file):
    layout = h5py.VirtualLayout((20, 3, 10, 12), np.uint8)
    layout[...] = h5py.VirtualSource("elsewhere.h5", "x", (20, 3, 10, 12))
    file.create_virtual_dataset("train/images", layout)


def huge(file):
    file.create_dataset("train/images", (10**13, 3, 10, 12), np.uint8, chunks=(5, 3, 10, 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unwritten, "train/images was never written to its end"),
        (half_written, "train/images was never written to its end"),
        (huge, "train/images was never written to its end"),
        (virtual, "train/images lies elsewhere"),
    ],
)
def test_an_hdf5_file_that_does_not_hold_what_it_promises(tmp_path, change, words):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in named(GROUPS)(parts()).items():
            file[name] = array
        del file["train/images"]
        change(file)
    with pytest.raises(BadInput, match=words):
        prepare("mine", tmp_path / "a.h5", tmp_path / "mine.h5")


@pytest.mark.parametrize("content", [b"", b"\x80\x05N.", b"PK\3\4junk", b"\x89HDF\r\n\x1a\njunk", b"a,b\n1,2\n"])
def test_a_file_of_another_kind_is_told_what_would_be_right(tmp_path, content):
    (tmp_path / "train_images.bin").write_bytes(content)
    with pytest.raises(BadInput, match=r"train_images.bin .*HDF5.*np.savez"):
        prepare("mine", tmp_path / "train_images.bin", tmp_path / "mine.h5")


def test_a_torn_file_of_several_is_named(tmp_path):
    for name, array in named(FLAT)(parts()).items():
        np.save(tmp_path / f"{name}.npy", array)
    whole = (tmp_path / "test_images.npy").read_bytes()
    for content in (whole[:-1], whole[:20], whole[:8] + b"junk" + whole[12:]):
        (tmp_path / "test_images.npy").write_bytes(content)
        with pytest.raises(BadInput, match=r"--source .* cannot be read .*np.savez"):
            prepare("mine", tmp_path, tmp_path / "out" / "mine.h5")


def test_names_and_places_that_cannot_be(tmp_path):
    np.savez(tmp_path / "a.npz", **named(FLAT)(parts()))
    (tmp_path / "empty").mkdir()
    for name, source, out, words in (
        ("mine", None, "mine.h5", "mine: a set of your own needs --source"),
        ("minst", None, "mine.h5", "did you mean mnist"),
        ("CIFAR-10", "empty", "mine.h5", "did you mean cifar10"),
        ("mine", "nowhere.npz", "mine.h5", "nowhere.npz: no such file or folder"),
        ("mine", "empty", "mine.h5", "empty: holds no .h5, .hdf5, .mat, .npz, .npy or IDX file"),
        ("mine", "a.npz", "a.npz", "a.npz: is the source itself, or in it; give another --out"),
        ("mine", "", "a.npz", "a.npz: is the source itself, or in it; give another --out"),
        ("../mine", "a.npz", "mine.h5", "'../mine'.*letters, digits, _ and -"),
        ("", "a.npz", "mine.h5", "letters, digits"),
        ("mnist", "a.npz", "mine.h5", "prepare my_mnist --source .*a.npz"),
    ):
        with pytest.raises(BadInput, match=words):
            prepare(name, None if source is None else tmp_path / source, tmp_path / out)
    with pytest.raises(BadInput, match="--channels first: belongs to a set of your own"):
        prepare("digits", None, tmp_path / "mine.h5", "first")
    # what was there is there still
    assert np.load(tmp_path / "a.npz")["test_labels"].tolist() == [0, 1, 2, 3, 4] * 2


@pytest.mark.cluster
def test_the_two_commands_of_the_docs(tmp_path):
    """NHWC, compressed, five classes: prepared, trained on, evaluated, under its own name."""
    with h5py.File(tmp_path / "photos.h5", "w") as file:
        for name, array in named(GROUPS, last)(parts(size=18)).items():
            file.create_dataset(name, data=array, compression="gzip", chunks=True)
    small = ["--model.name", "wrn", "--model.depth", "10", "--model.widen", "1", "--data.batch_size", "5"]
    short = ["--schedule.max_rounds", "1", "--algorithm.L", "2", "--replicas", "1", "--out", "run"]
    for command, words in (
        (["data.prepare", "cells", "--source", "photos.h5"], "data/cells.h5: 20 + 10 images of cells, 3 x 16 x 18"),
        (["train", "--data.name", "cells", *small, *short], "on cells (20 + 10 images)"),
        (["evaluate", "run"], "%"),
        (["report", "run", "--out", "report"], ""),
    ):
        command = [sys.executable, "-m", f"parle_hpc.{command[0]}", *command[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout + done.stderr
    assert "WRN-10-1 on cells" in (tmp_path / "report" / "runs.md").read_text()
    state = torch.load(tmp_path / "run" / "reference.pt", weights_only=True)
    shapes = [tuple(tensor.shape) for tensor in state.values() if tensor.ndim > 1]
    assert shapes[0][1] == 3
    assert shapes[-1][0] == 5


def test_a_file_that_is_written_over_is_said_to_be_another(tmp_path, capsys):
    for value, words in ((1, ""), (1, ""), (2, "held other data until now")):
        images = np.full((6, 8, 8), value, np.uint8)
        images[0, 0, 0] = 255
        parts = {f"{part}_{name}": v for part in ("train", "test") for name, v in
                 (("images", images), ("labels", np.arange(6) % 2))}  # fmt: skip
        np.savez(tmp_path / "cells.npz", **parts)
        prepare("cells", tmp_path / "cells.npz", tmp_path / "cells.h5")
        said = capsys.readouterr().err
        assert words in said
        assert ("until now" in said) == bool(words)
