"""Where the data sets come from: built in, downloaded with their checksums, or brought by hand.

Each function of SOURCES takes the user's source, a folder or a file, or None to download, and returns
{"train": (images, labels), "test": (images, labels)} and the checksum of what was read.
"""

import hashlib
import http.client
import re
import urllib.request

import numpy as np
from tqdm import tqdm

from ..errors import BadInput
from .files import below, gather, members, place, plain, read, unpack
from .formats import IDX_IMAGES, IDX_LABELS, read_cifar_binary, read_cifar_python, read_idx, read_svhn

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
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
SVHN_MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
SVHN_FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def fetch(name, mirrors):
    """The bytes of the file `name` from the first mirror that has it."""
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(f"{mirror}{name}", timeout=60) as answer:
                size = int(answer.headers.get("Content-Length") or 0) or None
                content = bytearray()
                with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
                    while part := answer.read(1 << 20):
                        content += part
                        bar.update(len(part))
                if size is not None and len(content) != size:
                    raise OSError(f"{len(content)} of {size} bytes arrived")
                return bytes(content)
        except (OSError, http.client.HTTPException) as error:
            reason = error
    raise BadInput(f"{name} cannot be downloaded ({reason}); bring it by hand and give --source FOLDER")


def find(name, found, source):
    """What reads the one file `name` of `found`, as `gather` gives it: (how it is called, bytes), in turn."""
    if not found[name]:
        raise BadInput(f"--source {source}: no {name} is there, packed or not, nor in a folder of it")
    for label, content in found[name]:
        yield label, content()


def mnist(source):
    """MNIST's 60,000 and 10,000 images, from a folder or an archive, or downloaded."""
    parts, checksums = {}, []
    found = gather(source, [name for files in MNIST_FILES.values() for name, _ in files]) if source else None
    for part, files in MNIST_FILES.items():
        arrays = []
        for (name, right), magic in zip(files, (IDX_IMAGES, IDX_LABELS), strict=True):
            array, checksum = mnist_array(name, right, magic, found, source)
            arrays.append(array)
            checksums.append(checksum)
        parts[part] = (arrays[0][:, None], arrays[1])
    return parts, " ".join(checksums)


def mnist_array(name, right, magic, found, source):
    """The array of one file, and its checksum, which is `right`."""
    packed = f"{name}.gz"
    given = find(name, found, source) if source else [(packed, unpack(fetch(packed, MNIST_MIRRORS), packed))]
    wrong = None
    # other sets have files of the same names, and may lie beside it
    for path, raw in given:
        checksum = hashlib.md5(raw).hexdigest()
        if checksum == right:
            return read_idx(raw, magic, path), checksum
        wrong = wrong or (path, raw, checksum)
    path, raw, checksum = wrong
    read_idx(raw, magic, path)
    raise BadInput(
        f"{path} is not MNIST's {name}: MD5 {checksum}, right is {right}; a set in MNIST's format is made under a name "
        "of its own"
    )


class Cifar:
    """One of the two CIFARs: its files' names in the binary and the python version.

    Args:
        classes: 10 or 100.
        train, test: names of the files, without .bin.
        label_bytes, label_key: of a record of the binary version, and in the dictionaries of the python version.
        md5: of the binary version's archive.
    """

    def __init__(self, classes, train, test, label_bytes, label_key, md5):
        self.archive = f"cifar-{classes}-binary.tar.gz"
        self.python_archive = f"cifar-{classes}-python.tar.gz"
        self.files = {"train": train, "test": test}
        self.label_bytes, self.label_key, self.classes, self.md5 = label_bytes, label_key, classes, md5

    def __call__(self, source):
        """50,000 and 10,000 images; `source` is the archive, a folder with it, or a folder with what was in it."""
        if source is None:
            raw = fetch(self.archive, CIFAR_MIRRORS)
            checksum = hashlib.md5(raw).hexdigest()
            if checksum != self.md5:
                raise BadInput(f"{self.archive} arrived damaged: MD5 {checksum}, right is {self.md5}; try again")
            return self._parts(members(raw, self.archive, self._names()), self.archive), checksum
        path = self._archive_in(place(source))
        if path.is_file() and plain(path.name) not in map(plain, self._names()):
            raw = read(path)
            return self._parts(members(raw, path, self._names()), path), hashlib.md5(raw).hexdigest()
        files = gather(source, self._names())
        found = {name: next(find(name, files, source))[1] for name in self._names() if files[name]}
        if not found:
            raise BadInput(
                f"--source {source}: neither {self.archive} nor {self.python_archive} nor their files are there"
            )
        return self._parts(found, path), hashlib.md5(b"".join(found[name] for name in sorted(found))).hexdigest()

    def _names(self):
        stems = [stem for stems in self.files.values() for stem in stems]
        return {name for stem in stems for name in (stem, f"{stem}.bin")}

    def _archive_in(self, path):
        """The archive in a folder, however it is packed, where there is one; else the path itself."""
        if path.is_dir():
            for file in below(path):
                if re.match(rf"cifar-{self.classes}-(binary|python)( ?\(\d+\))?\.(t|zip|7z|rar)", file.name.lower()):
                    return file
        return path

    def _parts(self, content, path):
        parts = {}
        for part, stems in self.files.items():
            pieces = [self._read(stem, content, path) for stem in stems]
            images, labels = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
            if labels.min() < 0 or labels.max() >= self.classes:
                raise BadInput(
                    f"{path} is not CIFAR-{self.classes}: labels of {part} reach from {labels.min()} to {labels.max()}"
                )
            parts[part] = images, labels
        return parts

    def _read(self, stem, content, path):
        if f"{stem}.bin" in content:
            return read_cifar_binary(content[f"{stem}.bin"], self.label_bytes, f"{path}: {stem}.bin")
        if stem in content:
            return read_cifar_python(content[stem], self.label_key, f"{path}: {stem}")
        raise BadInput(f"{path} is not CIFAR-{self.classes}: {stem}.bin (or, in the python version, {stem}) is missing")


def svhn(source):
    """SVHN's cropped digits: train and extra together, 604,388 images, and test, 26,032."""
    arrays, checksums = {}, []
    found = gather(source, SVHN_FILES) if source else None
    for name, right in SVHN_FILES.items():
        path, raw = next(find(name, found, source)) if source else (name, fetch(name, SVHN_MIRRORS))
        checksum = hashlib.md5(raw).hexdigest()
        if source is None and checksum != right:
            raise BadInput(f"{name} arrived damaged: MD5 {checksum}, right is {right}; try again")
        arrays[name] = read_svhn(raw, path)
        checksums.append(checksum)
    train, extra, test = arrays.values()
    joined = tuple(np.concatenate(pair) for pair in zip(train, extra, strict=True))
    return {"train": joined, "test": test}, " ".join(checksums)


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


BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
cifar10 = Cifar(10, BATCHES, ["test_batch"], 1, "labels", "c32a1d4ab5d03f1284b67883e8d87530")
cifar100 = Cifar(100, ["train"], ["test"], 2, "fine_labels", "03b5dce01913d631647c71ecec9e9cb8")

# the function, the classes, and how many images the published set has
SOURCES = {
    "digits": (digits, 10, (1437, 360)),
    "mnist": (mnist, 10, (60_000, 10_000)),
    "cifar10": (cifar10, 10, (50_000, 10_000)),
    "cifar100": (cifar100, 100, (50_000, 10_000)),
    "svhn": (svhn, 10, (604_388, 26_032)),
}
