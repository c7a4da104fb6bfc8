"""Contrast normalisation, ZCA and augmentation."""

import h5py
import numpy as np
import pytest
import torch
from helpers import raw

from parle_hpc.data.advice import default_path
from parle_hpc.data.augment import PAD, augment
from parle_hpc.data.prepare import prepare
from parle_hpc.data.preprocess import GCN_SCALE, ZCA_EPS, Preprocessing, contrast_normalised
from parle_hpc.data.store import open_dataset
from parle_hpc.errors import BadInput


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """A small CIFAR-10 of 300 + 60 images, prepared from an archive in its real format."""
    folder = tmp_path_factory.mktemp("cifar10")
    source = raw.archive(raw.binary(raw.cifar(10), 10), "cifar-10-batches-bin", folder / "cifar-10-binary.tar.gz")
    return prepare("cifar10", source, folder / "cifar10.h5")


def normalised(pixels):
    """Of uint8 images, flat; NumPy float64."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    return flat * (55.0 / np.linalg.norm(flat, axis=1, keepdims=True))


def whitened(data, start, stop):
    """Images of the training set after ZCA, flat; NumPy float64."""
    return raw.seen(data.train, np.arange(start, stop))[0].flatten(1).double().numpy()


def is_white(eigenvalues, covariance, mean):
    """Eigenvalues of the training covariance; covariance and mean after ZCA, the first in its eigenbasis."""
    right = np.clip(eigenvalues, 0, None)
    right = right / (right + ZCA_EPS)
    assert np.abs(covariance - np.diag(right)).max() <= 1e-3
    assert np.abs(mean).max() <= 1e-3
    return right


def test_the_covariance_after_zca(cifar10):
    data = open_dataset(cifar10, preprocessing="zca")
    n = len(data.train)
    x, after = normalised(data.train.images), whitened(data, 0, n)
    # fewer images than pixels: these are the directions that they have
    _, singular, V = np.linalg.svd(x - x.mean(0), full_matrices=False)
    mean = after.mean(0)
    y = (after - mean) @ V.T
    right = is_white(singular**2 / n, y.T @ y / n, mean)
    assert right.max() > 0.99
    assert right.min() < 1e-6
    # the others stay at 0
    assert ((after - mean - y @ V) ** 2).sum() / n <= 1e-3


def test_the_covariance_of_all_of_cifar_10_after_zca():
    path = default_path("cifar10")
    if not path.is_file():
        pytest.skip(f"{path} is not there: python -m parle_hpc.data.prepare cifar10")
    with h5py.File(path) as file:
        if len(file["train/labels"]) < 50_000:
            pytest.skip(f"{path} is not all of CIFAR-10")
    data = open_dataset(path, preprocessing="zca")
    n = len(data.train)
    total = products = after = after_products = 0
    for start in range(0, n, 1000):
        stop = min(start + 1000, n)
        x, y = normalised(data.train.images[start:stop]), whitened(data, start, stop)
        total, products = total + x.sum(0), products + x.T @ x
        after, after_products = after + y.sum(0), after_products + y.T @ y
    eigenvalues, V = np.linalg.eigh(products / n - np.outer(total, total) / n**2)
    is_white(eigenvalues, V.T @ (after_products / n - np.outer(after, after) / n**2) @ V, after / n)


def test_contrast_normalisation_of_plain_and_blank_images():
    pixels = torch.from_numpy(raw.images(5, 0)).double()
    pixels[2] = 7
    flat = contrast_normalised(pixels)
    assert flat.mean(1).abs().max() < 1e-12
    norms = flat.norm(dim=1)
    assert norms[2] == 0
    assert norms[[0, 1, 3, 4]] == pytest.approx([GCN_SCALE] * 4)
    # brightness and contrast do not matter
    assert torch.allclose(contrast_normalised(pixels * 0.5 + 3), flat)


def test_each_kind_on_real_bytes(cifar10):
    pixels = raw.images(6, 1)
    with h5py.File(cifar10) as file:
        views = {kind: Preprocessing(kind, file)(torch.from_numpy(pixels)) for kind in ("none", "standardize", "gcn")}
        mean, std = (file.attrs[name][:, None, None] for name in ("mean", "std"))
    for x in views.values():
        assert x.dtype == torch.float32
        assert x.shape == pixels.shape
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(views["none"], pixels / 255)
    assert np.allclose(views["standardize"], (pixels / 255 - mean) / std, atol=1e-5)
    assert np.allclose(views["gcn"].flatten(1), contrast_normalised(torch.from_numpy(pixels).double()), atol=1e-4)


def test_a_file_that_was_prepared_without_zca_says_so(digits):
    with pytest.raises(BadInput, match=r"digits.h5: holds nothing for --data.preprocessing zca; take none"):
        open_dataset(digits, preprocessing="zca")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "attributes", "zca", "words"),
    [
        ("standardize", {"mean": [0.1], "std": [0.0]}, {}, "standard deviation is 0"),
        ("standardize", {"mean": [0.1, 0.2], "std": [0.1]}, {}, "mean is not the 1 numbers"),
        ("standardize", {"mean": [float("nan")], "std": [0.1]}, {}, "mean is not finite"),
        ("zca", {}, {"mean": np.zeros(783), "matrix": np.eye(784)}, "zca/mean is not the 784 numbers"),
        (
            "zca",
            {},
            {"mean": np.zeros(784), "matrix": np.eye(784, dtype=int)},
            "zca/matrix is not the 784 x 784 numbers",
        ),
        ("zca", {}, {"mean": np.zeros(784), "matrix": np.full((784, 784), 1e308)}, "zca/matrix is not finite"),
    ],
)
def test_statistics_that_cannot_be_are_refused(digits, tmp_path, kind, attributes, zca, words):
    path = tmp_path / "digits.h5"
    path.write_bytes(digits.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
        for name, values in zca.items():
            file[f"zca/{name}"] = values
    with pytest.raises(BadInput, match=f"{path}: .*{words}"):
        open_dataset(path, preprocessing=kind)


def test_a_prepared_cifar_states_its_whitening(cifar10):
    with h5py.File(cifar10) as file:
        assert dict(file["zca"].attrs) == {"gcn_scale": GCN_SCALE, "eps": ZCA_EPS}
        assert file["zca/matrix"].dtype == file["zca/mean"].dtype == np.float64
        matrix = file["zca/matrix"][...]
        assert np.allclose(matrix, matrix.T)
        pixels = file["train/images"][...] / 255
        assert file.attrs["mean"] == pytest.approx(pixels.mean((0, 2, 3)))
        assert file.attrs["std"] == pytest.approx(pixels.std((0, 2, 3)))


def test_augmentation_is_a_mirror_and_a_crop_of_the_padded_image():
    images = torch.rand(12, 3, 10, 8)
    rng = np.random.default_rng(0)
    moves = torch.from_numpy(rng.integers(0, [2, 2 * PAD + 1, 2 * PAD + 1], (12, 3)))
    moved = augment(images, moves)
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (PAD, PAD), (PAD, PAD)], mode="reflect")
    for image, result, (mirror, top, left) in zip(padded, moved.numpy(), moves, strict=True):
        crop = image[:, top : top + 10, left : left + 8]
        assert np.array_equal(result, crop[:, :, ::-1] if mirror else crop)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(images, torch.tensor([[0, PAD, PAD]]).expand(12, 3)), images)
