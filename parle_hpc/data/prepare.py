"""Make a data set's HDF5 file from the raw files.

    python -m parle_hpc.data.prepare digits
    python -m parle_hpc.data.prepare mnist                      # downloads the four files
    python -m parle_hpc.data.prepare mnist --source FOLDER      # takes them from a folder, .gz or not

The file holds groups train and test, each with images (uint8, N x C x H x W, contiguous) and labels (int64), and as
attributes name, classes, source checksum, and the training images' channel mean and standard deviation (of 0 to 1).
"""

import argparse
import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..failure import BAD_INPUT, BadInput, Parser, leave
from .store import default_path, h5py

# https://yann.lecun.com/exdb/mnist no longer serves the files; these are the mirrors that torchvision uses.
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# MD5 of the unpacked files: that of the .gz depends on who packed them
MNIST_FILES = {
    "train": (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    ),
}
IDX_IMAGES, IDX_LABELS = 0x803, 0x801


def read_idx(path, magic):
    """The array in an IDX file of bytes, gzip or not; its checksum.

    Raises BadInput where the magic number is not `magic` or the length is not what the header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be unpacked ({error}); fetch it again") from None
    found = int.from_bytes(raw[:4], "big")
    if len(raw) < 4 or found != magic:
        raise BadInput(f"{path} is not the IDX file it should be: magic number {found:#06x}, right is {magic:#06x}")
    axes = magic & 0xFF
    header = 4 + 4 * axes
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, min(header, len(raw)), 4)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise BadInput(f"{path} is torn: {len(raw)} bytes, its header promises {expected}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape), hashlib.md5(raw).hexdigest()


def fetch(name, folder):
    """Download NAME.gz from the first mirror that has it."""
    path = Path(folder) / f"{name}.gz"
    for mirror in MNIST_MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=60) as answer, open(path, "wb") as file:
                shutil.copyfileobj(answer, file)
            return path
        except (urllib.error.URLError, OSError) as error:
            reason = error
    raise BadInput(f"{name}.gz cannot be downloaded ({reason}); bring the four files by hand and give --source FOLDER")


def find(name, source):
    """NAME or NAME.gz in the folder `source`."""
    for candidate in (Path(source) / f"{name}.gz", Path(source) / name):
        if candidate.is_file():
            return candidate
    raise BadInput(f"--source {source}: neither {name}.gz nor {name} is there")


def mnist(source):
    """MNIST's 60,000 and 10,000 images, from a folder or downloaded."""
    parts, checksums = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for part, files in MNIST_FILES.items():
            arrays = []
            for (name, right), magic in zip(files, (IDX_IMAGES, IDX_LABELS), strict=True):
                path = find(name, source) if source else fetch(name, folder)
                array, checksum = read_idx(path, magic)
                if checksum != right:
                    raise BadInput(f"{path} is not MNIST's {name}: MD5 {checksum}, right is {right}")
                arrays.append(array)
                checksums.append(checksum)
            parts[part] = (arrays[0][:, None], arrays[1])
    return parts, " ".join(checksums)


def digits(source):
    """scikit-learn's 1,797 handwritten digits, 8x8 brought to 28x28 (bilinear); 1,437 train, 360 test, stratified."""
    if source:
        raise BadInput("digits comes with scikit-learn; leave --source out")
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    checksum = hashlib.md5(images.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()
    small = torch.from_numpy(images).reshape(-1, 1, 8, 8) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=28, mode="bilinear", align_corners=False)
    large = large.round().to(torch.uint8).numpy()
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return {"train": (large[train], labels[train]), "test": (large[test], labels[test])}, checksum


SOURCES = {"digits": (digits, 10), "mnist": (mnist, 10)}


def prepare(name, source=None, out=None):
    """Write the HDF5 file of a data set; its path.

    The file is complete or not there at all, also when several processes make it at once. Raises BadInput where the
    source is not what it should be or the file cannot be written.
    """
    make, classes = SOURCES[name]
    parts, checksum = make(source)
    path = Path(out) if out else default_path(name)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            pixels = parts["train"][0] / np.float64(255)
            file.attrs.update(
                name=name,
                classes=classes,
                checksum=checksum,
                mean=pixels.mean((0, 2, 3)),
                std=pixels.std((0, 2, 3)),
            )
            for group, (images, labels) in parts.items():
                file.create_dataset(f"{group}/images", data=np.ascontiguousarray(images))
                file.create_dataset(f"{group}/labels", data=labels.astype(np.int64))
        partial.replace(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}); give another --out") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def main():
    parser = Parser(
        prog="python -m parle_hpc.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(SOURCES), help="data set")
    parser.add_argument("--source", help="folder with the raw files; downloaded where not given")
    parser.add_argument("--out", help="file to write (default: data/NAME.h5)")
    try:
        arguments = parser.parse_args()
        path = prepare(arguments.name, arguments.source, arguments.out)
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    with h5py.File(path) as file:
        counts = " + ".join(f"{len(file[group]['labels']):,}" for group in ("train", "test"))
        print(f"{path}: {counts} images of {arguments.name}, {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
