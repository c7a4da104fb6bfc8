"""From bytes to what the network sees: scaling, global contrast normalisation, ZCA (section 4.3).

ZCA is fitted once, at preparation, in float64; each mini-batch is whitened on the device that trains, so that the
data set stays bytes, once on each node.
"""

import numpy as np
import torch

from ..errors import BadInput

GCN_SCALE = 55.0  # Euclidean norm of a normalised image
WHITENED = ("cifar10", "cifar100")
NO_ZCA = "take none, standardize or gcn: prepare fits ZCA for cifar10 and cifar100 alone"
ZCA_EPS = 0.1  # added to the covariance's eigenvalues; these two are those of the WRN authors' whitened CIFAR


def contrast_normalised(images):
    """Global contrast normalisation: each image less its mean, at Euclidean norm GCN_SCALE.

    images: floating-point (N, C, H, W); the result is (N, C H W). A blank image becomes 0.
    """
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat * (GCN_SCALE / flat.norm(dim=1, keepdim=True).clamp(min=1e-8))


def fit_zca(images, chunk=2048):
    """Mean (D,) and ZCA matrix (D, D), float64, of uint8 images (N, C, H, W) after global contrast normalisation.

    With covariance V diag(lambda) V^T the matrix is V diag((lambda + ZCA_EPS)^-1/2) V^T, so that the covariance of
    whitened images is V diag(lambda / (lambda + ZCA_EPS)) V^T.
    """
    total, products = 0, 0
    for start in range(0, len(images), chunk):
        flat = contrast_normalised(torch.from_numpy(images[start : start + chunk]).double())
        total = total + flat.sum(0)
        products = products + flat.T @ flat
    mean = total / len(images)
    eigenvalues, vectors = torch.linalg.eigh(products / len(images) - torch.outer(mean, mean))
    # rounding leaves eigenvalues that should be 0 a little below
    scaled = vectors * (eigenvalues.clamp(min=0) + ZCA_EPS).rsqrt()
    return mean.numpy(), (scaled @ vectors.T).numpy()


def _numbers(kind, file, holder, name, shape, advice):
    """A data set, or attribute, of finite numbers as a float32 tensor. Raises BadInput where it is not of the shape."""
    if name not in holder:
        raise BadInput(f"{file.filename}: holds nothing for --data.preprocessing {kind}; {advice}")
    found = holder[name]
    # what a damaged file claims to hold may be larger than the memory
    if getattr(found, "shape", None) != shape or found.dtype.kind != "f":
        raise BadInput(
            f"{file.filename}: {name} is not the {' x '.join(map(str, shape))} numbers it should be; {advice}"
        )
    numbers = torch.from_numpy(found[...].astype(np.float64)).float()
    if not numbers.isfinite().all():
        raise BadInput(f"{file.filename}: {name} is not finite; {advice}")
    return numbers


class Preprocessing:
    """Uint8 images on a device to the network's input, float32 in channels_last order, which convolutions prefer.

    Args:
        kind: none (0 to 1); standardize (less each channel's mean, over its standard deviation); gcn; zca (after gcn).
        file: the data set's open HDF5 file, of which what the kind needs is kept.
        again: what makes the file right, for a message.

    Raises BadInput where the file lacks it, or it is not for images of their shape.
    """

    def __init__(self, kind, file, again=""):
        self.kind, self._tensors, self._device = kind, (), None
        channels, height, width = file["train/images"].shape[1:]
        size = channels * height * width
        if kind == "standardize":
            advice = f"take another kind, or {again}"
            mean, std = (_numbers(kind, file, file.attrs, name, (channels,), advice) for name in ("mean", "std"))
            if std.min() <= 0:
                raise BadInput(
                    f"{file.filename}: a channel's standard deviation is {std.min():g}; take --data.preprocessing none "
                    "or gcn, or leave the channel out"
                )
            self._tensors = tuple(255 * tensor.view(-1, 1, 1) for tensor in (mean, std))
        elif kind == "zca":
            shapes = {"zca/mean": (size,), "zca/matrix": (size, size)}
            whitened = file.attrs.get("name") in WHITENED
            advice = f"take another kind, or {again}" if whitened else NO_ZCA
            self._tensors = tuple(_numbers(kind, file, file, name, shape, advice) for name, shape in shapes.items())

    def __call__(self, images):
        """(N, C, H, W) uint8 to float32."""
        if self._device != images.device:
            self._device, self._tensors = images.device, tuple(t.to(images.device) for t in self._tensors)
        x = images.float()
        if self.kind == "none":
            x = x.div_(255)
        elif self.kind == "standardize":
            mean, std = self._tensors
            x = x.sub_(mean).div_(std)
        else:
            flat = contrast_normalised(x)
            if self.kind == "zca":
                mean, matrix = self._tensors
                flat = (flat - mean) @ matrix
            x = flat.view_as(x)
        return x.contiguous(memory_format=torch.channels_last)
