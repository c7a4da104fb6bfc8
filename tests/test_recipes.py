"""Every recipe trains, on a small set in the real format, with the paper's settings for each algorithm."""

import gzip
import hashlib
import json

import numpy as np
import pytest
from helpers import raw
from helpers.idx import idx
from helpers.mpi import passes

from parle_hpc.data import sources
from parle_hpc.data.prepare import prepare
from parle_hpc.recipes import recipe_names
from parle_hpc.settings import ALGORITHMS, DATA_PARALLEL, ROUNDS, load


@pytest.fixture(scope="session")
def small(tmp_path_factory, digits, cifar10):
    """A function that gives the small HDF5 file of a data set."""
    made = {"digits": digits, "cifar10": cifar10}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = prepare(name, SMALL[name](folder), folder / f"{name}.h5")
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "MNIST_FILES", sources.MNIST_FILES)
        yield get


def small_mnist(folder):
    files = {}
    for part, count in (("train", 160), ("test", 40)):
        pixels, labels = raw.images(count, count, 1, 28)[:, 0], (np.arange(count) % 10).astype("uint8")
        files[part] = []
        for (name, _), array in zip(sources.MNIST_FILES[part], (pixels, labels), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            files[part].append((name, hashlib.md5(idx(array)).hexdigest()))
    sources.MNIST_FILES = files
    return folder


def small_cifar100(folder):
    return raw.archive(raw.python(raw.cifar(100, 200), 100), "cifar-100-python", folder / "cifar-100-python.tar.gz")


def small_svhn(folder):
    raw.svhn(folder, (60, 60, 30))
    return folder


SMALL = {"mnist": small_mnist, "cifar100": small_cifar100, "svhn": small_svhn}


@pytest.mark.parametrize("name", recipe_names())
def test_it_trains_two_rounds(small, tmp_path, name):
    settings = load(["--recipe", name])
    given = ["--data.path", small(settings.data.name), "--out", tmp_path / "run", "--data.batch_size", 8]
    given += ["--schedule.max_rounds", 2, "--algorithm.L", 2]
    if settings.model.name == "wrn":
        given += ["--model.depth", 10, "--model.widen", 1]
    if settings.model.name == "allcnn":
        given += ["--model.channels", 8]
    printed = passes(settings.replicas or 2, "-m", "parle_hpc.train", "--recipe", name, *given)
    assert f"{settings.replicas or 2} replicas x 1 rank, {settings.model.name}" in printed
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "round"] == [2, 4]
    assert 0 < events[-1]["val_error"] <= 100


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_half_the_data_for_each(small, tmp_path, algorithm):
    given = ["--data.path", small("digits"), "--out", tmp_path / "run", "--data.fraction", 0.5]
    given += ["--schedule.max_rounds", 1, "--algorithm.name", algorithm]
    passes(2, "-m", "parle_hpc.train", *given)
    event = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    # B counts what a replica sees: 719 of 1,437 samples are 11 mini-batches of 64
    assert event["passes"] == pytest.approx(event["step"] / 11, rel=1e-5)


PAPER = {
    # recipe: (lr, factor), drops and epochs of Parle and Entropy-SGD, and of SGD and Elastic-SGD
    "lenet_mnist": ((0.1, 10), ([2], 3), ([30, 60, 90], 100)),
    "wrn_cifar10": ((0.1, 5), ([2, 4, 6], 8), ([60, 120, 180], 200)),
    "wrn_cifar100": ((0.1, 5), ([2, 4, 6], 8), ([60, 120, 180], 200)),
    "wrn_svhn": ((0.01, 10), ([2, 4], 6), ([80, 120], 160)),
}
MODELS = {
    "lenet_mnist": ("lenet", 0.25, None, None, 0.0, "none", False),
    "wrn_cifar10": ("wrn", 0.3, 28, 10, 5e-4, "zca", True),
    "wrn_cifar100": ("wrn", 0.3, 28, 10, 5e-4, "zca", True),
    "wrn_svhn": ("wrn", 0.4, 16, 4, 5e-4, "gcn", False),
    "allcnn_cifar10": ("allcnn", 0.5, None, None, 1e-3, "zca", True),
    "allcnn_cifar10_split3": ("allcnn", 0.5, None, None, 1e-3, "zca", True),
    "allcnn_cifar10_split6": ("allcnn", 0.5, None, None, 1e-3, "zca", True),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_has_the_papers_network_and_data(name):
    s = load(["--recipe", name])
    m, d = s.model, s.data
    found = (m.name, m.dropout, m.depth, m.widen, s.algorithm.weight_decay, d.preprocessing, d.augment)
    assert found == MODELS[name]
    assert (d.batch_size, s.algorithm.L, s.algorithm.momentum) == (128, 25, 0.9)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_has_the_papers_schedule_for_each_algorithm(name, algorithm):
    s = load(["--recipe", name, "--algorithm.name", algorithm]).schedule
    rate, rounds, steps = PAPER[name]
    assert (s.lr, s.drop_factor) == rate
    assert (s.drops, s.epochs) == (rounds if algorithm in ROUNDS else steps)


def test_the_split_recipes_are_section_5():
    for n, fraction in ((3, 0.5), (6, 0.25)):
        assert (load(["--recipe", f"allcnn_cifar10_split{n}"]).replicas, fraction) == (n, fraction)
        for algorithm in ALGORITHMS:
            s = load(["--recipe", f"allcnn_cifar10_split{n}", "--algorithm.name", algorithm])
            assert s.data.fraction == fraction
            assert s.replicas == (1 if algorithm in DATA_PARALLEL else n)
            whole = load(["--recipe", "allcnn_cifar10", "--algorithm.name", algorithm])
            assert s.schedule == whole.schedule
