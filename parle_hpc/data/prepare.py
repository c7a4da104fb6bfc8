"""Make a data set's HDF5 file from the raw files.

    python -m parle_hpc.data.prepare digits
    python -m parle_hpc.data.prepare mnist                              # downloads the four files
    python -m parle_hpc.data.prepare cifar10 --source FILE.tar.gz       # or a folder: what was brought by hand

mnist: the four IDX files, .gz or not. cifar10, cifar100: the archive of the binary or the python version, packed or
not. svhn: train_32x32.mat, extra_32x32.mat and test_32x32.mat. The file that is made holds groups train and test, each
with images (uint8, N x C x H x W, contiguous) and labels (int64); as attributes name, classes, source checksum, and
the training images' channel mean and standard deviation (of 0 to 1); for cifar10 and cifar100 also zca/mean and
zca/matrix (float64), which whiten images after global contrast normalisation.
"""

import argparse
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..cluster.waiting import leave
from ..errors import BAD_INPUT, BadInput, Parser, say
from .preprocess import GCN_SCALE, ZCA_EPS, fit_zca
from .sources import SOURCES
from .store import default_path, h5py

WHITENED = ("cifar10", "cifar100")


def channel_statistics(images):
    """Mean and standard deviation of each channel, of 0 to 1, from counts of the 256 values."""
    values, counts = np.arange(256) / 255, 0
    for start in range(0, len(images), 4096):
        planes = images[start : start + 4096].swapaxes(0, 1)
        counts = counts + np.array([np.bincount(plane.reshape(-1), minlength=256) for plane in planes])
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    return mean, np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))


def prepare(name, source=None, out=None):
    """Write the HDF5 file of a data set; its path.

    The file is complete or not there at all, also when several processes make it at once. Raises BadInput where the
    source is not what it should be or the file cannot be written.
    """
    path = Path(out) if out else default_path(name)
    if not path.name or (os.path.lexists(path) and not os.path.isfile(path)):
        raise BadInput(f"--out {path}: is not a file, nor can become one; give the name of a file, such as {name}.h5")
    make, classes, published = SOURCES[name]
    parts, checksum = make(source)
    # processes of two nodes may have one number
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # this version keeps checksums of all that is not images
        with h5py.File(partial, "w", libver="v110") as file:
            mean, std = channel_statistics(parts["train"][0])
            file.attrs.update(name=name, classes=classes, checksum=checksum, mean=mean, std=std)
            for group, (images, labels) in parts.items():
                file.create_dataset(f"{group}/images", data=np.ascontiguousarray(images))
                file.create_dataset(f"{group}/labels", data=labels.astype(np.int64), fletcher32=True)
            if name in WHITENED:
                mean, matrix = fit_zca(parts["train"][0])
                file.create_group("zca").attrs.update(gcn_scale=GCN_SCALE, eps=ZCA_EPS)
                file.create_dataset("zca/mean", data=mean, fletcher32=True)
                file.create_dataset("zca/matrix", data=matrix, fletcher32=True)
        partial.replace(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}); give another --out") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    counts = tuple(len(labels) for _, labels in parts.values())
    if counts != published:
        say(f"{name}: {counts[0]:,} + {counts[1]:,} images are not the published {published[0]:,} + {published[1]:,}")
    return path


def main():
    parser = Parser(
        prog="python -m parle_hpc.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(SOURCES), help="data set")
    parser.add_argument("--source", help="the archive, or the folder with the raw files; downloaded where not given")
    parser.add_argument("--out", help="file to write (default: data/NAME.h5)")
    try:
        arguments = parser.parse_args()
        path = prepare(arguments.name, arguments.source, arguments.out)
    except BadInput as error:
        leave(error, BAD_INPUT)
    with h5py.File(path) as file:
        counts = " + ".join(f"{len(file[group]['labels']):,}" for group in ("train", "test"))
        print(f"{path}: {counts} images of {arguments.name}, {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
