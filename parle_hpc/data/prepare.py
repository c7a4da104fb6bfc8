"""Make a data set's HDF5 file, from its published files or from images and labels of your own.

    python -m parle_hpc.data.prepare digits
    python -m parle_hpc.data.prepare mnist                              # downloads the four files
    python -m parle_hpc.data.prepare cifar10 --source FILE.tar.gz       # or a folder: what was brought by hand
    python -m parle_hpc.data.prepare mine --source FILE.h5              # HDF5, .npz, or a folder of .npy: your own

mnist: the four IDX files. cifar10, cifar100: the binary or the python version. svhn: train_32x32.mat, extra_32x32.mat
and test_32x32.mat. Each packed or not, in an archive or a folder, or one of them, beside which the others lie.

A set of your own has any other name, under which --data.name finds it. Its arrays are called train_images,
train_labels, test_images, test_labels, or as Keras (x_train, ...), or are groups train and test. Images are N x H x W,
N x C x H x W or N x H x W x C, whole numbers of 0 to 255 (or these over 255) in any type; labels one integer an image,
or one-hot. --data.preprocessing none, standardize and gcn work with it; ZCA is fitted for cifar10 and cifar100 alone.

The file that is made holds groups train and test, each with images (uint8, N x C x H x W, contiguous) and labels
(int64); as attributes name, classes, source checksum, layout, and the training images' channel mean and standard
deviation (of 0 to 1); for cifar10 and cifar100 also zca/mean and zca/matrix (float64), which whiten images after global
contrast normalisation.
"""

import argparse
import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from ..cluster.waiting import leave
from ..errors import BAD_INPUT, BadInput, Parser, say
from ..paths import as_path
from .advice import PREPARE, default_path, is_name, near_miss
from .arrays import LAYOUT
from .own import HOW, SUFFIXES, read_own
from .preprocess import GCN_SCALE, WHITENED, ZCA_EPS, fit_zca
from .sources import SOURCES

BUILT_IN = ("digits",)  # which need no source


def channel_statistics(images):
    """Mean and standard deviation of each channel, of 0 to 1, from counts of the 256 values."""
    values, counts = np.arange(256) / 255, 0
    for start in range(0, len(images), 4096):
        planes = images[start : start + 4096].swapaxes(0, 1)
        counts = counts + np.array([np.bincount(plane.reshape(-1), minlength=256) for plane in planes])
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    return mean, np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))


def prepare(name, source=None, out=None, channels=None):
    """Write the HDF5 file of a data set; its path.

    The file is complete or not there at all, also when several processes make it at once. What is worth knowing of how
    the source was read is said. Raises BadInput where the source is not what it should be or the file cannot be
    written.
    """
    if not is_name(name):
        raise BadInput(f"{name!r}: a data set's name is letters, digits, _ and -")
    path = Path(out) if out else default_path(name)
    if not path.name or (os.path.lexists(path) and not os.path.isfile(path)):
        raise BadInput(f"--out {path}: is not a file, nor can become one; give the name of a file, such as {name}.h5")
    parts, classes, checksum, notes = content(name, source, path, channels)
    # processes of two nodes may have one number
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # this version keeps checksums of all that is not images
        with h5py.File(partial, "w", libver="v110", locking=False) as file:
            mean, std = channel_statistics(parts["train"][0])
            file.attrs.update(name=name, classes=classes, checksum=checksum, layout=LAYOUT, mean=mean, std=std)
            for group, (images, labels) in parts.items():
                file.create_dataset(f"{group}/images", data=np.ascontiguousarray(images))
                file.create_dataset(f"{group}/labels", data=labels.astype(np.int64), fletcher32=True)
            if name in WHITENED:
                mean, matrix = fit_zca(parts["train"][0])
                file.create_group("zca").attrs.update(gcn_scale=GCN_SCALE, eps=ZCA_EPS)
                file.create_dataset("zca/mean", data=mean, fletcher32=True)
                file.create_dataset("zca/matrix", data=matrix, fletcher32=True)
        notes = [*notes, *replaced(path, checksum)]
        partial.replace(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}); give another --out") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    for note in notes:
        say(f"{name}: {note}")
    return path


def replaced(path, checksum):
    """What is to be said of a file that is written over, whose data came from a source of another checksum."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            before = file.attrs.get("checksum")
    except OSError:
        return []
    if before in (None, checksum):
        return []
    return [f"{path} held other data until now, which the runs that were trained on them will miss"]


def content(name, source, out, channels):
    """{part: (images, labels)} of a data set, its classes, its checksum, and lines to say of it."""
    if name not in SOURCES:
        if not source:
            raise BadInput(f"{name}: {near_miss(name)}a set of your own needs --source FILE: {HOW}")
        if os.path.exists(out) and any(
            os.path.exists(source) and os.path.samefile(source, p) for p in (out, out.parent)
        ):
            raise BadInput(f"--out {out}: is the source itself, or in it; give another --out")
        return read_own(source, channels, near_miss(name))
    if channels:
        raise BadInput(f"--channels {channels}: belongs to a set of your own, not to {name}; leave it out")
    if source and Path(source).suffix.lower() in set(SUFFIXES) - {".mat"} and os.path.isfile(source):
        raise BadInput(
            f"--source {source}: {name} is made from its published files; this one, as a set of your own, is made with "
            f"{PREPARE} my_{name} --source {shlex.quote(str(source))}"
        )
    read, classes, published = SOURCES[name]
    parts, checksum = read(source)
    counts = tuple(len(labels) for _, labels in parts.values())
    few = f"{counts[0]:,} + {counts[1]:,} images are not the published {published[0]:,} + {published[1]:,}"
    return parts, classes, checksum, [few] if counts != published else []


def main():
    parser = Parser(
        prog="python -m parle_hpc.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(sorted(SOURCES))}, or any name for a set of your own")
    parser.add_argument(
        "--source", type=as_path, help="the archive, file or folder; the known sets are downloaded where not given"
    )
    parser.add_argument("--out", type=as_path, help="file to write (default: data/NAME.h5)")
    parser.add_argument(
        "--channels", choices=["first", "last"], help="of your own images, where their shape does not tell"
    )
    try:
        arguments = parser.parse_args()
        path = prepare(arguments.name, arguments.source, arguments.out, arguments.channels)
    except BadInput as error:
        leave(error, BAD_INPUT)
    with h5py.File(path, "r", locking=False) as file:
        counts = " + ".join(f"{len(file[group]['labels']):,}" for group in ("train", "test"))
        size = " x ".join(map(str, file["train/images"].shape[1:]))
        print(
            f"{path}: {counts} images of {arguments.name}, {size}, {file.attrs['classes']} classes, "
            f"{os.path.getsize(path) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    sys.exit(main())
