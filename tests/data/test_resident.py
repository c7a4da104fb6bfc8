"""Data in a device's memory: the same mini-batches, gathered there, and nothing that comes back to the host."""

from itertools import product
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from helpers import raw

from parle_hpc.data import resident
from parle_hpc.data.loader import Loader, sweep
from parle_hpc.data.preprocess import GCN_SCALE, ZCA_EPS, fit_zca
from parle_hpc.data.resident import Resident, fits, upload
from parle_hpc.data.split import MiniBatches
from parle_hpc.data.tokens import Tokens
from parle_hpc.settings import load
from parle_hpc.settings.language import Language
from parle_hpc.tasks.chosen import Sources
from parle_hpc.tasks.language import LanguageModel
from parle_hpc.training.resident import keep_on

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A data set with all that the kinds of preprocessing ask for, of 300 + 60 images of 8 by 8."""
    path = tmp_path_factory.mktemp("small") / "small.h5"
    train, test = (raw.images(count, seed, size=8) for seed, count in enumerate((300, 60)))
    mean, matrix = fit_zca(train)
    with h5py.File(path, "w") as file:
        file.attrs.update(name="cifar10", classes=10, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25])
        for part, pixels in (("train", train), ("test", test)):
            file[f"{part}/images"], file[f"{part}/labels"] = pixels, np.arange(len(pixels)) % 10
        file.create_group("zca").attrs.update(gcn_scale=GCN_SCALE, eps=ZCA_EPS)
        file["zca/mean"], file["zca/matrix"] = mean, matrix
    return path


def images(small, preprocessing="none", augment="false"):
    given = {"path": small, "name": "cifar10", "preprocessing": preprocessing, "augment": augment}
    return Sources(load([f"--data.{key}={value}" for key, value in given.items()]))


class Texts(Sources):
    """The Sources of a text in memory, whose largest token is the largest that its type holds."""

    def __init__(self, dtype):
        parts = [np.arange(-size, 0).astype(dtype) for size in (300, 90)]
        task = LanguageModel(Language(context=7, depth=1, width=8, heads=2), Tokens("t", 1 << 32, *parts, 1, 1, "0"))
        self.task = task
        self.train, self.validation = (
            SimpleNamespace(
                dataset=task.dataset(part), collate=task.collate, prepare=task.prepare, draws=False, part=part
            )
            for part in ("train", "validation")
        )


def seen(sources, device):
    """Mini-batches of training, in parts, and of a sweep over either part."""
    found = []
    for m in (1, 2):
        batches = MiniBatches(np.arange(len(sources.train.dataset)), 12, seed=3, replica=1, place=m - 1, m=m)
        loader = Loader(sources.train, batches, device, accumulate=2)
        found += [loader(step) for step in (0, 1, 7)]
    indices = [np.arange(9), np.arange(9, 12)]
    return [*found, *(list(sweep(source, indices, device)) for source in (sources.train, sources.validation))]


def check(make):
    """A task's Sources give the same from a device's memory, bit for bit, and on another device than this one, too."""
    there, far = make(), make()
    there.reside(CPU)
    assert {type(there[part].dataset) for part in ("train", "validation")} == {Resident}
    mapped = seen(make(), CPU)
    torch.testing.assert_close(seen(there, CPU), mapped, rtol=0, atol=0)
    far.reside(META)
    for found, here in zip(seen(far, META), mapped, strict=True):
        for (count, tensors), (right, others) in zip(found, here, strict=True):
            assert count == right
            assert {tensor.device for tensor in tensors} == {META}
            assert [(t.shape, t.dtype, t.stride()) for t in tensors] == [(t.shape, t.dtype, t.stride()) for t in others]


KINDS = ("none", "standardize", "gcn", "zca")


@pytest.mark.parametrize(("preprocessing", "augment"), [*product(KINDS, ("false", "true"))])
def test_images_are_the_same(small, preprocessing, augment):
    check(lambda: images(small, preprocessing, augment))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_are_the_same_also_the_largest(dtype):
    check(lambda: Texts(dtype))
    there = Texts(dtype)
    there.reside(CPU)
    (_, (_, following)), *_ = sweep(there.validation, [np.array([len(there.validation.dataset) - 1])], CPU)
    # 90 tokens: 12 windows of 7, of which the last one's last token is the 85th
    assert following[0, -1] == np.iinfo(dtype).max - 5


def test_indices_are_brought_to_where_the_data_are():
    """Else torch would bring them itself, and wait."""
    assert Resident(9, lambda at: at, META).__getitems__([4, 2]).device == META


def test_what_is_brought_in_pieces_is_whole(monkeypatch):
    array = np.arange(60, dtype=np.int16).reshape(10, 2, 3)
    array.flags.writeable = False
    for piece in (1, 12, 25, 36, 10_000):
        monkeypatch.setattr(resident, "PIECE", piece)
        assert torch.equal(upload(array, CPU), torch.arange(60, dtype=torch.int16).view(10, 2, 3))


def test_data_fit_into_a_share_of_what_is_free_which_the_ranks_on_a_device_divide():
    assert fits(25, 100, 0.25, 1)
    assert not fits(26, 100, 0.25, 1)
    assert fits(6, 100, 0.25, 4)
    assert not fits(7, 100, 0.25, 4)
    assert fits(100, 100, 1, 1)
    assert not fits(1, 100, 0, 1)


def test_they_are_brought_to_a_gpu_where_they_fit_and_a_line_says_so(monkeypatch):
    asked, went = [], []

    class Some:
        nbytes = 184_400_000

        def reside(self, device):
            went.append(device)

    class Own(Some):
        nbytes = 0

    def free(device):
        asked.append(device)
        return 1_000_000_000, 2_000_000_000

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    gpu = torch.device("cuda", 3)
    here = load([]).data
    less, worked = (here.model_copy(update=given) for given in ({"device_memory": 0.18}, {"workers": 1}))
    for device, sources, data, ranks in (
        (CPU, Some(), here, 1),
        (gpu, Some(), less, 1),
        (gpu, Some(), worked, 1),
        (gpu, Some(), here, 2),
        (gpu, Own(), here, 1),
    ):
        assert keep_on(device, sources, data, ranks) == []
    assert went == []
    assert keep_on(gpu, Some(), here, 1) == ["data on the GPU, 184 MB"]
    assert went == [gpu]
    assert set(asked) == {gpu}


def test_both_parts_are_counted_and_a_users_data_set_stays_where_it_is(small, digits):
    sources = images(small)
    assert sources.nbytes == (300 + 60) * (3 * 8 * 8 + 8)
    assert Texts(np.uint16).nbytes == 2 * (300 + 90)
    sources.train.dataset = [0, 1]
    assert sources.nbytes == 0
