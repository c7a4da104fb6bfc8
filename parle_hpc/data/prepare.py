"""Make a data set's HDF5 file, from its published files, from images and labels of your own, or from a text.

    python -m parle_hpc.data.prepare digits
    python -m parle_hpc.data.prepare mnist                              # downloads the four files
    python -m parle_hpc.data.prepare cifar10 --source FILE.tar.gz       # or a folder: what was brought by hand
    python -m parle_hpc.data.prepare mine --source FILE.h5              # HDF5, .npz, or a folder of .npy: your own
    python -m parle_hpc.data.prepare text --source FILE... --out data/novels.h5       # a text of your own
    python -m parle_hpc.data.prepare topics                             # a text that is built in: Python's own help

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

A text's files are joined; its end, a tenth or --validation, is the test part. A token is a byte, or what --tokenizer
MODULE:NAME gives: a function from text to integers, or an object with such an encode, which Python can import, also
from the current folder. A tokenizer sees each part as a whole, and UTF-8 alone. The file is called as --data.name finds
it, data/NAME.h5, and holds groups train and test, each with tokens (uint16; uint32 of more than 65,536), and as
attributes name, vocabulary (what the tokenizer has as vocab_size, n_vocab, vocabulary or len(), or one more than the
largest token), train_bytes and test_bytes of text, tokenizer, and checksum. The text of topics differs from one version
of Python to the next.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

import h5py
import numpy as np

from ..cluster.waiting import leave
from ..errors import BAD_INPUT, BadInput, Parser
from ..paths import as_path
from .advice import PREPARE, TEXT, TOPICS, is_name, near_miss
from .arrays import LAYOUT
from .own import HOW, SUFFIXES, read_own
from .preprocess import GCN_SCALE, WHITENED, ZCA_EPS, fit_zca
from .sources import SOURCES
from .text import prepare_text
from .writing import keep_apart, output, write

BUILT_IN = ("digits", TOPICS)  # which need no source


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
    """Write the HDF5 file of a data set of images, or of the built-in text; its path.

    The file is complete or not there at all, also when several processes make it at once. What is worth knowing of how
    the source was read is said. Raises BadInput where the source is not what it should be or the file cannot be
    written.
    """
    if name == TOPICS:
        return prepare_text(name, source, out)
    if not is_name(name):
        raise BadInput(f"{name!r}: a data set's name is letters, digits, _ and -")
    path = output(name, out)
    parts, classes, checksum, notes = content(name, source, path, channels)

    def fill(file):
        mean, std = channel_statistics(parts["train"][0])
        file.attrs.update(classes=classes, layout=LAYOUT, mean=mean, std=std)
        for group, (images, labels) in parts.items():
            file.create_dataset(f"{group}/images", data=np.ascontiguousarray(images))
            file.create_dataset(f"{group}/labels", data=labels.astype(np.int64), fletcher32=True)
        if name in WHITENED:
            mean, matrix = fit_zca(parts["train"][0])
            file.create_group("zca").attrs.update(gcn_scale=GCN_SCALE, eps=ZCA_EPS)
            file.create_dataset("zca/mean", data=mean, fletcher32=True)
            file.create_dataset("zca/matrix", data=matrix, fletcher32=True)

    write(path, name, checksum, fill, notes)
    return path


def content(name, source, out, channels):
    """{part: (images, labels)} of a data set, its classes, its checksum, and lines to say of it."""
    if name not in SOURCES:
        if not source:
            raise BadInput(
                f"{name}: {near_miss(name)}a set of your own needs --source FILE: {HOW}; a text is made with "
                f"{PREPARE} {TEXT} --source FILE... --out {shlex.quote(str(out))}"
            )
        keep_apart(out, source)
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


def make_parser():
    parser = Parser(
        prog="python -m parle_hpc.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join([*sorted(SOURCES), TOPICS, TEXT])
    parser.add_argument("name", help=f"{known}, or any other name for a set of your own images")
    parser.add_argument(
        "--source",
        type=as_path,
        nargs="+",
        help="the archive, file or folder, or a text's files; the known sets are downloaded where not given",
    )
    parser.add_argument("--out", type=as_path, help="file to write (default: data/NAME.h5)")
    parser.add_argument(
        "--channels", choices=["first", "last"], help="of your own images, where their shape does not tell"
    )
    parser.add_argument("--tokenizer", metavar="MODULE:NAME", help="of a text (default: a token is a byte)")
    parser.add_argument("--validation", type=float, help="share of a text, its end, to test on (default: 0.1)")
    return parser


def from_command_line(arguments=None):
    """The path of what a command line asks for, a list of strings; None: this process's. Raises BadInput."""
    a = make_parser().parse_args(arguments)
    if a.name in (TEXT, TOPICS):
        if a.channels:
            raise BadInput(f"--channels {a.channels}: belongs to images, not to {a.name}; leave it out")
        return prepare_text(a.name, a.source, a.out, a.tokenizer, a.validation)
    for option in ("tokenizer", "validation"):
        given = getattr(a, option)
        if given is not None:
            raise BadInput(f"--{option} {given}: belongs to {TEXT}, not to {a.name}; leave it out")
    if len(a.source or []) > 1:
        raise BadInput(f"--source {' '.join(a.source)}: {a.name} is made from one file or folder; give that")
    return prepare(a.name, a.source and a.source[0], a.out, a.channels)


def in_words(path):
    """What the file that was made holds."""
    with h5py.File(path, "r", locking=False) as file:
        name, what = file.attrs["name"], "tokens" if "vocabulary" in file.attrs else "labels"
        counts = " + ".join(f"{len(file[group][what]):,}" for group in ("train", "test"))
        size = f"{os.path.getsize(path) / 1e6:.1f} MB"
        if what == "tokens":
            return f"{path}: {counts} tokens of {name}, vocabulary {file.attrs['vocabulary']}, {size}"
        shape = " x ".join(map(str, file["train/images"].shape[1:]))
        return f"{path}: {counts} images of {name}, {shape}, {file.attrs['classes']} classes, {size}"


def main():
    try:
        path = from_command_line()
    except BadInput as error:
        leave(error, BAD_INPUT)
    print(in_words(path))


if __name__ == "__main__":
    sys.exit(main())
