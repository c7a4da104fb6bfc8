"""Small data sets in the published raw formats, with the statistics of natural images: neighbours are alike."""

import http.server
import io
import pickle
import tarfile
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
from scipy.io import savemat


def images(count, seed, channels=3, size=32):
    """Smooth random images, uint8 (count, channels, size, size)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, channels, size, size))
    for axis in (2, 3):
        noise = np.cumsum(noise, axis)
    noise -= noise.min((1, 2, 3), keepdims=True)
    return (noise * (255 / noise.max((1, 2, 3), keepdims=True))).astype(np.uint8)


def cifar(classes, count=60, seed=0):
    """Images and labels of each file of a CIFAR, by the name of the file without .bin."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    return {name: (images(count, seed + i), np.arange(count) * 7 % classes) for i, name in enumerate(names)}


def binary(parts, classes):
    """Content of the binary version's files, by name."""
    files = {"readme.html": b"<html>"}
    for name, (pixels, labels) in parts.items():
        columns = [labels[:, None]] if classes == 10 else [labels[:, None] // 5, labels[:, None]]
        files[f"{name}.bin"] = np.hstack([*columns, pixels.reshape(len(labels), -1)]).astype(np.uint8).tobytes()
    return files


def python(parts, classes, protocol=2):
    """Content of the python version's files, by name."""
    key = b"labels" if classes == 10 else b"fine_labels"
    return {
        name: pickle.dumps({b"data": pixels.reshape(len(labels), -1), key: labels.tolist()}, protocol)
        for name, (pixels, labels) in parts.items()
    }


def archive(files, folder, path):
    """A .tar.gz at `path` with the files in `folder`."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def svhn(folder, counts=(40, 30, 20)):
    """SVHN's three files in `folder`; images and labels (1 to 10) of each, in the order train, extra, test."""
    parts = []
    for i, (name, count) in enumerate(zip(("train", "extra", "test"), counts, strict=True)):
        pixels, labels = images(count, i), np.arange(count) % 10 + 1
        X = pixels.transpose(2, 3, 1, 0)
        savemat(folder / f"{name}_32x32.mat", {"X": X, "y": labels[:, None].astype(np.uint8)}, do_compression=True)
        parts.append((pixels, labels))
    return parts


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def serving(folder):
    """The address at which the files of a folder can be downloaded."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def seen(part, indices):
    """Images of a Part as the network sees them, and their labels."""
    images, labels = part.gather(indices)
    return part.preprocess(images), labels
