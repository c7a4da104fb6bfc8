"""Raw files to HDF5, the reader's checks, and who sees which samples."""

import gzip
import hashlib
import os
import subprocess
import sys
from fractions import Fraction

import h5py
import numpy as np
import pytest
from helpers import raw
from helpers.damage import attribute, claim, external, forget, link, put
from helpers.idx import idx
from hypothesis import example, given
from hypothesis import strategies as st

from parle_hpc.data import sources
from parle_hpc.data.augment import moves
from parle_hpc.data.prepare import prepare
from parle_hpc.data.split import MiniBatches, seen_by, shares
from parle_hpc.data.store import open_dataset
from parle_hpc.errors import BadInput


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder in MNIST's format, small: two parts of 12 and 5 images; its checksums stand for the right ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 12), ("test", 5)):
        arrays = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        files[part] = []
        for (name, _), array in zip(sources.MNIST_FILES[part], arrays, strict=True):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            files[part].append((name, hashlib.md5(idx(array)).hexdigest()))
    monkeypatch.setattr(sources, "MNIST_FILES", files)
    return tmp_path


def test_mnist_from_a_folder(source):
    path = prepare("mnist", source, source / "out" / "mnist.h5")
    data = open_dataset(path)
    assert (data.name, data.classes) == ("mnist", 10)
    assert data.train.images.shape == (12, 1, 28, 28)
    content = gzip.decompress((source / "train-images-idx3-ubyte.gz").read_bytes())
    assert data.train.images.tobytes() == content[16:]
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
    prepare("mnist", source, path)
    assert [p.name for p in path.parent.iterdir()] == ["mnist.h5"]


def test_mnist_is_downloaded_from_the_first_mirror_that_has_it(source, monkeypatch):
    with raw.serving(source) as there:
        monkeypatch.setattr(sources, "MNIST_MIRRORS", (f"{there}gone/", there))
        path = prepare("mnist", None, source / "out" / "mnist.h5")
        assert len(open_dataset(path).train) == 12
        (source / "t10k-images-idx3-ubyte.gz").unlink()
        with pytest.raises(BadInput, match=r"t10k-images.*cannot be downloaded.*404.*--source"):
            prepare("mnist", None, path)


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
        prepare("mnist", source, source / "mnist.h5")
    assert all(word in str(error.value) for word in ["train-images", *words]), error.value
    assert not (source / "mnist.h5").exists()


def test_a_source_that_lacks_a_file_and_an_output_that_cannot_be(source):
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadInput, match="t10k-labels"):
        prepare("mnist", source, source / "mnist.h5")
    (source / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        prepare("digits", None, source / "file" / "digits.h5")


def test_digits_are_fixed_stratified_and_complete(digits):
    data = open_dataset(digits)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert all(34 <= count <= 38 for count in np.bincount(data.test.labels))
    seen = {image.tobytes() for part in (data.train, data.test) for image in part.images}
    assert len(seen) == 1797
    images, labels = raw.seen(data.train, np.array([3, 0]))
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (forget("test"), ["test/images", "missing"]),
        (forget("train/labels"), ["train/labels", "missing"]),
        (forget("classes"), ["classes", "missing"]),
        (attribute("classes", "ten"), ["classes", "positive integer"]),
        (attribute("classes", h5py.Empty("i8")), ["classes", "positive integer"]),
        (attribute("classes", 0), ["classes", "positive integer"]),
        (attribute("classes", 10**6), ["digits has 10 classes, not 1000000"]),
        (attribute("name", 5), ["name", "text"]),
        (put("train/images", np.zeros((1437, 0, 28, 28), np.uint8)), ["train/images", "no image"]),
        (link("train/labels", h5py.ExternalLink("/etc/passwd", "x")), ["train/labels"]),
        (link("train/labels", h5py.SoftLink("/test/labels")), ["train/labels lies elsewhere"]),
        (external("train/labels", np.int64, (1437,)), ["train/labels lies elsewhere"]),
        (claim("train/labels", np.int64, (10**13,), chunks=True), ["(10000000000000,)"]),
        (set_label(10), ["test/labels", "10", "0 to 9"]),
        (set_label(-1), ["test/labels", "-1"]),
        (put("train/images", np.zeros((1437, 28, 28), np.uint8)), ["train/images", "N x C x H x W"]),
        (put("train/images", np.zeros((1437, 1, 28, 28), np.uint8), chunks=True), ["contiguous", "it is chunked"]),
        (put("train/labels", np.zeros(5, np.int64)), ["train/labels", "(5,)"]),
        (put("test/images", np.zeros((360, 1, 8, 8), np.uint8)), ["differ"]),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(digits, tmp_path, change, words):
    path = damaged(digits, tmp_path, change)
    with pytest.raises(BadInput) as error:
        open_dataset(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


def test_every_bit_but_those_of_images_is_guarded(digits, tmp_path):
    whole, right = digits.read_bytes(), open_dataset(digits)
    with h5py.File(digits) as file:
        images = [file[f"{part}/images"] for part in ("train", "test")]
        pixels = [range(i.id.get_offset(), i.id.get_offset() + i.size) for i in images]
    others = [at for at in range(len(whole)) if not any(at in part for part in pixels)]
    path, refused = tmp_path / "flipped.h5", 0
    for at in np.random.default_rng(0).choice(others, 200, replace=False):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = open_dataset(path)
        except BadInput as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            # padding
            assert (found.name, found.classes) == (right.name, right.classes)
            for part in ("train", "test"):
                assert np.array_equal(getattr(found, part).labels, getattr(right, part).labels)
                assert np.array_equal(getattr(found, part).images, getattr(right, part).images)
    assert refused > 50


def test_the_output_must_be_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path, tmp_path / "pipe", "/"):
        with pytest.raises(BadInput, match=f"--out {out}: is not a file"):
            prepare("digits", out=out)
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_of_another_data_set_is_refused(digits):
    for name in ("mnist", "mine"):
        with pytest.raises(
            BadInput, match=f"holds digits, not {name}; give {name}.s file, or train with --data.name d"
        ):
            open_dataset(digits, name)


def by_hand(path, images=None, labels=None, **options):
    """A file in the trainer's format that its user wrote, but for what is said; the images it stands for."""
    right = raw.images(20, 0, 3, 12)
    with h5py.File(path, "w") as file:
        file.attrs.update(name="cells", classes=5)
        for part in ("train", "test"):
            file.create_dataset(f"{part}/images", data=right if images is None else images(right), **options)
            file[f"{part}/labels"] = np.arange(20) % 5 if labels is None else labels(np.arange(20) % 5)
    return right


CELLS = "--data.name cells --data.path data/cells.h5"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1))}, ["N x C x H x W", "(20, 12, 12, 3)"]),
        ({"images": lambda x: x[:, 0]}, ["N x C x H x W", "(20, 12, 12)"]),
        ({"chunks": True}, ["it is chunked uint8 (20, 3, 12, 12)"]),
        ({"chunks": True, "compression": "gzip"}, ["it is chunked, gzip uint8 (20, 3, 12, 12)"]),
        ({"images": lambda x: x.astype(np.float32) / 255}, ["float32"]),
        ({"images": lambda x: x.astype(np.int64)}, ["int64"]),
        ({"labels": lambda y: y.astype(np.int32)}, ["train/labels must be int64", "int32"]),
        ({"labels": lambda y: y[:, None]}, ["train/labels must be int64", "(20, 1)"]),
        ({"labels": lambda y: y + 1}, ["labels reach from 1 to 5"]),
    ],
)
def test_a_file_written_by_hand_is_right_or_told_the_command_that_makes_it_right(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    right = by_hand("my cells.h5", **change)
    for name in ("cells", "digits"):
        with pytest.raises(BadInput) as error:
            open_dataset("my cells.h5", name)
        assert all(word in str(error.value) for word in words), error.value
        command = "python -m parle_hpc.data.prepare cells --source 'my cells.h5'"
        assert str(error.value).endswith(f"; convert it with {command}, and train with {CELLS}")
    data = open_dataset(prepare("cells", "my cells.h5"), "cells")
    images = data.train.images if data.train.images.shape[1] == 3 else np.repeat(data.train.images, 3, 1)
    assert np.array_equal(images, right if images.shape[1] == data.train.images.shape[1] else right[:, :1].repeat(3, 1))
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4] * 4


def test_a_file_written_by_hand_that_is_right_is_taken(tmp_path):
    right = by_hand(tmp_path / "cells.h5")
    data = open_dataset(tmp_path / "cells.h5", "cells")
    assert (data.name, data.classes) == ("cells", 5)
    assert np.array_equal(data.test.images, right)


@pytest.mark.parametrize("channels", [2, 12])
def test_channels_that_cannot_be_told_are_taken_from_prepare_alone(tmp_path, channels):
    """A file of 12 bands is right after prepare, where it was asked, and refused before it."""
    by_hand(tmp_path / "bands.h5", lambda images: images[:, :1].repeat(channels, 1))
    with pytest.raises(BadInput, match=r"N x C x H x W.*channels.*convert it"):
        open_dataset(tmp_path / "bands.h5", "cells")
    path = prepare("cells", tmp_path / "bands.h5", tmp_path / "cells.h5", "first")
    assert open_dataset(path, "cells").train.images.shape == (20, channels, 12, 12)


def test_advice_knows_the_set_and_never_writes_over_what_the_user_has(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    by_hand("data/cells.h5", lambda x: x.astype(np.int64))
    with h5py.File("bare.h5", "w") as file:
        file["x_train"] = np.zeros(3)
    np.savez("photos.npz", x_train=np.zeros(3))
    (tmp_path / "torn.h5").write_bytes(digits.read_bytes()[:300_000])
    (tmp_path / "cifar-10.tar.gz").write_bytes(b"\x1f\x8bxxxx")
    (tmp_path / "empty.h5").touch()
    anew = "prepare it anew with python -m parle_hpc.data.prepare"
    convert = "convert it with python -m parle_hpc.data.prepare"
    for path, name, words in (
        ("data/cells.h5", "cells", f"{convert} cells --source data/cells.h5 --out data/cells-prepared.h5, and train "),
        (
            "bare.h5",
            "digits",
            f"bare.h5: attribute 'name' is missing, prepare has not made it; {convert} bare --s",
        ),
        ("bare.h5", "cells", f"{convert} cells --source bare.h5, and train with {CELLS}"),
        ("photos.npz", "digits", f"{convert} photos --source photos.npz, and train with --data.name photos --data."),
        (
            "cifar-10.tar.gz",
            "cifar10",
            f"{convert} cifar10 --source cifar-10.tar.gz, and give --data.path data/cifar10.h5",
        ),
        ("cifar-10.tar.gz", "digits", f"{convert} mine --source cifar-10.tar.gz"),
        ("cifar-10.tar.gz", "cells", f"{convert} cells --source cifar-10.tar.gz, and train with {CELLS}"),
        ("empty.h5", "mnist", f"{anew} mnist --out empty.h5"),
        ("torn.h5", "mnist", f"{anew} mnist --out torn.h5"),
        ("torn.h5", "cells", f"{anew} cells --source FILE --out torn.h5"),
        ("no.h5", "mnist", "no.h5: no such data file; make it with python -m parle_hpc.data.prepare mnist --out no.h5"),
        ("no.h5", "cells", "make it from your own with python -m parle_hpc.data.prepare cells --source FILE --out no"),
        ("data", "cells", "data: is a folder; give --data.path data/cells.h5"),
        ("data", "mnist", "give --data.path data/mnist.h5, made with python -m parle_hpc.data.prepare mnist --out dat"),
        ("no.h5", "cifar_10", "did you mean cifar10?"),
        ("data/no.h5", "cells", "data/no.h5: no such data file; make it from your own"),
        ("data/cell.h5", "cell", "did you mean cells? else make it from your own"),
        ("no.h5", "minst", "did you mean mnist?"),
        ("no.h5", "CIFAR-100", "did you mean cifar100?"),
    ):
        with pytest.raises(BadInput) as error:
            open_dataset(path, name)
        assert words in str(error.value), error.value
    path = damaged(digits, tmp_path, attribute("classes", 0))
    with pytest.raises(BadInput, match=f"{anew} digits --out {path}"):
        open_dataset(path, "digits")


def test_a_file_that_cannot_be_read_is_not_called_torn(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"junk")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", denied)
    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(BadInput, match=r"a.h5 cannot be read \(Permission denied\)$"):
        open_dataset(tmp_path / "a.h5", "cells")


def test_no_lock_is_asked_for_of_a_file_system(digits, tmp_path):
    """Shared ones have none (errno 11, 37, 38); whoever imports HDF5 first."""
    np.savez(tmp_path / "a.npz", x_train=digits_like(20), y_train=np.arange(20), x_test=digits_like(9), y_test=range(9))
    program = f"""
import fcntl
import h5py
from parle_hpc.data.prepare import prepare
from parle_hpc.data.store import open_dataset
prepare("cells", {str(tmp_path / "a.npz")!r}, {str(tmp_path / "a.h5")!r})
for name, path in (("digits", {str(digits)!r}), ("cells", {str(tmp_path / "a.h5")!r})):
    file = open(path, "rb")
    fcntl.flock(file, fcntl.LOCK_EX)
    open_dataset(path, name)
prepare("again", {str(tmp_path / "a.h5")!r}, {str(tmp_path / "b.h5")!r})
"""
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    for asks, words in (({}, ""), ({"HDF5_USE_FILE_LOCKING": "TRUE"}, "export HDF5_USE_FILE_LOCKING=FALSE")):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**environment, **asks})
        assert done.returncode == (1 if asks else 0), done.stderr
        assert words in done.stderr


def digits_like(count):
    return raw.images(count, 0, 1, 28)


def test_a_prepared_set_of_ones_own_that_was_damaged(tmp_path):
    by_hand(tmp_path / "a.h5")
    path = prepare("cells", tmp_path / "a.h5", tmp_path / "cells.h5")
    with h5py.File(path, "r+") as file:
        attribute("classes", 3)(file)
    with pytest.raises(BadInput, match=f"anew with python -m parle_hpc.data.prepare cells --source FILE --out {path}"):
        open_dataset(path, "cells")


@pytest.mark.parametrize("kind", ["zca", "standardize"])
def test_what_a_set_of_ones_own_has_of_preprocessing(tmp_path, kind):
    by_hand(tmp_path / "a.h5")
    path = prepare("cells", tmp_path / "a.h5", tmp_path / "cells.h5")
    if kind == "standardize":
        assert abs(raw.seen(open_dataset(path, "cells", kind).train, np.arange(20))[0].mean()) < 1e-5
        with pytest.raises(BadInput, match=r"nothing for --data.preprocessing standardize; .*convert it"):
            open_dataset(tmp_path / "a.h5", "cells", kind)
    else:
        with pytest.raises(
            BadInput, match=r"zca; take none, standardize or gcn: .* cifar10 and cifar100 alone"
        ) as error:
            open_dataset(path, "cells", kind)
        assert "prepare it anew" not in str(error.value)


def test_the_first_samples_alone(digits):
    whole, some = open_dataset(digits), open_dataset(digits, samples=100)
    assert (len(some.train), len(some.test)) == (100, 360)
    assert np.array_equal(some.train.images, whole.train.images[:100])
    assert np.array_equal(some.train.labels, whole.train.labels[:100])
    with pytest.raises(BadInput, match=r"--data.samples 2000: .*digits.h5 has 1437 training images"):
        open_dataset(digits, samples=2000)


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
        with pytest.raises(BadInput, match="a replica sees"):
            MiniBatches(np.arange(samples), size, seed=seed, replica=0, m=m)
        return
    whole = MiniBatches(np.arange(samples), size, seed=seed, replica=1)
    ranks = [MiniBatches(np.arange(samples), size, seed=seed, replica=1, place=place, m=m) for place in range(m)]
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
    first, second = (MiniBatches(np.arange(1000), 100, seed=0, replica=a) for a in range(2))
    assert not np.array_equal(first.indices(0), second.indices(0))
    assert not np.array_equal(first.indices(0), first.indices(10))
    # any step at any time, as a resumed run asks for it
    assert np.array_equal(MiniBatches(np.arange(1000), 100, seed=0, replica=0).indices(37), first.indices(37))


def drawn(batches, step):
    return batches.draw_at(step)(moves)


def test_moves_are_a_function_of_the_step_and_do_not_depend_on_m():
    whole = MiniBatches(np.arange(100), 12, seed=3, replica=1)
    shared = [MiniBatches(np.arange(100), 12, seed=3, replica=1, place=place, m=3) for place in range(3)]
    for step in (0, 5, 11):
        joined = np.concatenate([drawn(rank, step) for rank in shared])
        assert np.array_equal(joined, drawn(whole, step))
        assert np.array_equal(joined, drawn(whole, step))
    assert not np.array_equal(drawn(whole, 0), drawn(whole, 1))
    assert not np.array_equal(drawn(whole, 0), drawn(MiniBatches(np.arange(100), 12, seed=3, replica=0), 0))
    many = np.concatenate([drawn(whole, step) for step in range(200)])
    assert [sorted(set(column)) for column in many.T.tolist()] == [[0, 1], list(range(9)), list(range(9))]


def test_a_second_draw_is_another_and_what_lacks_rows_is_refused():
    draw = MiniBatches(np.arange(100), 12, seed=3, replica=1).draw_at(0)
    assert not np.array_equal(draw(moves), draw(moves))
    with pytest.raises(ValueError, match=r"a row for each of 12 samples; its shape is \(5, 3\)"):
        draw(lambda random, count: moves(random, 5))


@given(samples=st.integers(1, 400), n=st.integers(1, 8), fraction=st.floats(0.01, 1), seed=st.integers(0, 5))
@example(samples=300, n=6, fraction=0.17, seed=0)
def test_replicas_see_equal_parts_that_cover_the_set_or_are_refused(samples, n, fraction, seed):
    size = -(-samples // n)
    parts = None
    try:
        parts = [seen_by(samples, fraction, seed=seed, replica=a, n=n) for a in range(n)]
    except BadInput as error:
        assert fraction * samples <= size
        assert f"--data.fraction {fraction:g}" in str(error)  # noqa: PT017
    if parts:
        (length,) = {len(part) for part in parts}
        # rounded up, but from what is no more than a rounding above a whole number
        exact = Fraction(fraction) * samples
        assert exact * (1 - Fraction(2, 10**12)) <= length < exact + 1
        assert all(len(set(part.tolist())) == length for part in parts)
        times = np.bincount(np.concatenate(parts), minlength=samples)
        assert times.min() >= 1
        assert times.max() - times.min() <= 1
    else:
        assert fraction * n < 1 + 1e-9


def test_the_papers_two_splits_and_sgds_random_part():
    for n, fraction in ((3, 0.5), (6, 0.25)):
        parts = [seen_by(50_000, fraction, seed=0, replica=a, n=n) for a in range(n)]
        assert {len(part) for part in parts} == {int(50_000 * fraction)}
        assert len(np.unique(np.concatenate(parts))) == 50_000
    # a third is no decimal number, yet three of them are the whole
    assert len(seen_by(60_000, 0.333333333333, seed=0, replica=0, n=3)) == 20_000
    half, other = (seen_by(50_000, 0.5, seed=seed, replica=0, n=1, covers=False) for seed in (0, 1))
    assert len(half) == 25_000
    assert 10_000 < len(np.intersect1d(half, other)) < 15_000


@pytest.mark.parametrize(
    ("n", "fraction", "words"), [(3, 0.25, "3 replicas.*0.3334, or 4 replicas"), (1, 0.5, "1 replica .*1, or 2")]
)
def test_parts_that_cannot_cover_are_refused(n, fraction, words):
    with pytest.raises(BadInput, match=f"--data.fraction {fraction}: {words}"):
        seen_by(60_000, fraction, seed=0, replica=0, n=n)


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused():
    with pytest.raises(BadInput, match="65 does not divide among the 2 ranks of a replica; nearest: 64 or 66"):
        MiniBatches(np.arange(1000), 65, seed=0, replica=0, m=2)


@given(samples=st.integers(1, 200), size=st.integers(1, 30), ranks=st.integers(1, 7), limit=st.integers(1, 40))
def test_a_sweep_meets_every_sample_once(samples, size, ranks, limit):
    everyone = np.concatenate([i for rank in range(ranks) for i in shares(samples, size, rank, ranks)])
    assert sorted(everyone) == list(range(samples))
    some = [i for rank in range(ranks) for i in shares(samples, size, rank, ranks, limit)]
    assert len(some) == min(limit, -(-samples // size))
    together = np.concatenate(some)
    assert len(set(together.tolist())) == len(together)
