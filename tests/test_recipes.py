"""Every recipe trains, on a small set in the real format, with the paper's settings for each algorithm."""

import gzip
import hashlib

import numpy as np
import pytest
from helpers import raw
from helpers.idx import idx
from helpers.mpi import pass_in_turn
from helpers.trainer import TRAIN, events

from parle_hpc.data import sources
from parle_hpc.data.advice import TOPICS
from parle_hpc.data.prepare import prepare
from parle_hpc.data.text import prepare_text
from parle_hpc.recipes import recipe_names
from parle_hpc.settings import ALGORITHMS, DATA_PARALLEL, PAPERS, ROUNDS, load, settle


@pytest.fixture(scope="session")
def small(tmp_path_factory, digits):
    """A function that gives the small HDF5 file of a data set, whose ZCA, which takes long to fit, changes nothing."""
    made = {"digits": digits}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("parle_hpc.data.prepare.fit_zca", lambda images: (np.zeros(PIXELS), np.eye(PIXELS)))
                patch.setattr(sources, "MNIST_FILES", sources.MNIST_FILES)
                made[name] = SMALL[name](folder)
        return made[name]

    return get


def small_mnist(folder):
    files = {}
    for part, count in (("train", 160), ("test", 40)):
        pixels, labels = raw.images(count, count, 1, 28)[:, 0], (np.arange(count) % 10).astype("uint8")
        files[part] = []
        for (name, _), array in zip(sources.MNIST_FILES[part], (pixels, labels), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            files[part].append((name, hashlib.md5(idx(array)).hexdigest()))
    sources.MNIST_FILES = files
    return prepare("mnist", folder, folder / "mnist.h5")


def small_cifar10(folder):
    source = raw.archive(raw.binary(raw.cifar(10), 10), "cifar-10-batches-bin", folder / "cifar-10-binary.tar.gz")
    return prepare("cifar10", source, folder / "cifar10.h5")


def small_cifar100(folder):
    source = raw.archive(raw.python(raw.cifar(100, 200), 100), "cifar-100-python", folder / "cifar-100-python.tar.gz")
    return prepare("cifar100", source, folder / "cifar100.h5")


def small_svhn(folder):
    raw.svhn(folder, (60, 60, 30))
    return prepare("svhn", folder, folder / "svhn.h5")


def small_topics(folder):
    return prepare(TOPICS, out=folder / f"{TOPICS}.h5")


def small_shakespeare(folder):
    (folder / "input.txt").write_text("To be, or not to be, that is the question. " * 200)
    return prepare_text("text", [folder / "input.txt"], folder / "shakespeare.h5")


PIXELS = 3 * 32 * 32  # of CIFAR
SMALL_GPT = ("--task.depth", 1, "--task.width", 24, "--task.heads", 2, "--task.context", 16)
SMALL = {
    "mnist": small_mnist,
    "cifar10": small_cifar10,
    "cifar100": small_cifar100,
    "svhn": small_svhn,
    TOPICS: small_topics,
    "shakespeare": small_shakespeare,
}


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A function (ranks) -> by name the folder and the output of each run on so many ranks, made in one start."""
    work, made = tmp_path_factory.mktemp("recipes"), {}

    def start(ranks):
        runs = {name: two_rounds(name, small) for name in recipe_names() if ranks_of(name) == ranks}
        if ranks == 2:
            runs |= {f"half {algorithm}": half(algorithm, small) for algorithm in PAPERS}
        commands = [(*TRAIN, *settings, "--out", work / name) for name, settings in runs.items()]
        printed = pass_in_turn(ranks, *commands, timeout=600)
        return {name: (work / name, text) for name, text in zip(runs, printed, strict=True)}

    def get(ranks):
        if ranks not in made:
            made[ranks] = start(ranks)
        return made[ranks]

    return get


def ranks_of(recipe):
    """6 where the recipe says how many replicas there are, 3 or 6; else 2."""
    return 6 if load(["--recipe", recipe]).replicas else 2


def two_rounds(recipe, small):
    """Settings of a recipe's beginning, with a small network."""
    settings = load(["--recipe", recipe])
    given = ["--recipe", recipe, "--data.path", small(settings.data.name), "--data.batch_size", 8]
    given += ["--schedule.max_rounds", 2, "--algorithm.L", 2]
    if settings.task.name == "language":
        # a validation goes through the text in parts of a rank's mini-batch
        return [*given, "--data.batch_size", 128, *SMALL_GPT]
    if settings.model.name == "wrn":
        given += ["--model.depth", 10, "--model.widen", 1]
    if settings.model.name == "allcnn":
        given += ["--model.channels", 8]
    return given


def half(algorithm, small):
    """Settings of a round in which each replica sees half the data."""
    given = ["--data.path", small("digits"), "--data.fraction", 0.5, "--data.samples", 400, "--data.batch_size", 20]
    return [*given, "--schedule.max_rounds", 1, "--algorithm.name", algorithm]


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", recipe_names())
def test_it_trains_two_rounds(trained, name):
    ranks, settings = ranks_of(name), load(["--recipe", name])
    folder, printed = trained(ranks)[name]
    n = settings.replicas or 2
    assert f"{n} replicas x {ranks // n} rank" in printed
    assert f", {settings.task.name or settings.model.name}" in printed
    assert [e["step"] for e in events(folder, "round")] == [2, 4]
    score, most = ("bits_per_byte", 8.1) if settings.task.name == "language" else ("error", 100)
    assert 0 < events(folder, "validate")[-1][f"val_{score}"] <= most


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", PAPERS)
def test_half_the_data_for_each(trained, algorithm):
    folder, _ = trained(2)[f"half {algorithm}"]
    (event,) = events(folder, "end")
    # B counts what a replica sees: 200 of 400 samples are 10 mini-batches of 20
    assert event["passes"] == pytest.approx(event["step"] / 10, rel=1e-5)


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


@pytest.mark.parametrize("name", ["gpt_text", "gpt_shakespeare"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_recipe_of_a_text_settles_for_each_algorithm(name, algorithm):
    """Who can has the optimiser inside; a run has as many steps for each."""
    s = load(["--recipe", name, "--algorithm.name", algorithm])
    settle(s, 4)
    assert s.algorithm.inner == ("adamw" if algorithm in (*ROUNDS, "diloco") else "sgd")
    B = {"gpt_text": 409, "gpt_shakespeare": 61}[name]
    steps = B * s.schedule.epochs * (s.algorithm.L if algorithm in ROUNDS else 1)
    assert steps == pytest.approx({"gpt_text": 400, "gpt_shakespeare": 5000}[name], rel=0.03)
