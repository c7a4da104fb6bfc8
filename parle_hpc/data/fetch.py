"""One fetch of samples, the same in the process that trains and in one that works for it."""

import io
import pickle
import random
import traceback
from contextlib import contextmanager, nullcontext
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import numpy as np
import torch


class Key(NamedTuple):
    """What is fetched at once: indices of samples, and the seeds of what they draw; None: they draw nothing.

    part: which source of several they are of.
    """

    indices: np.ndarray
    words: np.ndarray | None
    part: str | None = None


def fetch(source, key):
    """The samples of a Key, collated; source: as Loader has it."""
    dataset, indices = source.dataset, key.indices.tolist()
    together = getattr(dataset, "__getitems__", None)
    with nullcontext() if key.words is None else seeded(key.words):
        samples = [dataset[index] for index in indices] if together is None else together(indices)
        return source.collate(samples)


def fetch_of(sources, key):
    """As `fetch`, of one source, or of the part in {part: source} that the Key names."""
    return fetch(sources if key.part is None else sources[key.part], key)


@contextmanager
def seeded(words):
    """Inside it `random`, `numpy.random` and torch on the CPU draw what `words`, uint32 (8,), say; after it they go on.

    torch.manual_seed would seed the GPU that trains as well.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(words[:3].tobytes())
        np.random.seed(words[3:6])
        torch.default_generator.manual_seed(int(words[6]) << 32 | int(words[7]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Packer(pickle.Pickler):
    """Pickles a mini-batch without its tensors, which are to travel in shared memory."""

    def __init__(self, file):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors = []

    def persistent_id(self, found):
        plain = type(found) is torch.Tensor and found.layout is torch.strided and found.device.type == "cpu"
        if not plain or found.requires_grad or found.is_quantized:
            return None
        self.tensors.append(found)
        return len(self.tensors) - 1


class Unpacker(pickle.Unpickler):
    def __init__(self, pickled, tensors):
        super().__init__(io.BytesIO(pickled))
        self._tensors = tensors

    def persistent_load(self, number):
        return self._tensors[number]


def pack(batch):
    """(Bytes, tensors) of a mini-batch. What cannot be pickled raises here; torch's queue would drop it silently."""
    file = io.BytesIO()
    packer = Packer(file)
    packer.dump(batch)
    return file.getvalue(), packer.tensors


class InWorker(Exception):
    """The traceback of an exception in another process, as text: the cause of the same exception in this one."""

    def __str__(self):
        return f"in a worker process\n\n{self.args[0]}"


class Failure(NamedTuple):
    """An exception on its way to another process: pickled, in words, and its traceback."""

    pickled: bytes | None
    words: str
    text: str

    @classmethod
    def of(cls, error):
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = None
        return cls(pickled, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    def again(self):
        """Raise it."""
        try:
            error = pickle.loads(self.pickled)
        except Exception:
            # a class that cannot be made from its arguments, or is not known here
            error = RuntimeError(self.words)
        raise error from InWorker(self.text)


class Fetcher:
    """What a worker process asks, for torch's DataLoader: a dataset with a Key for index.

    It takes the source along as bytes: what goes wrong where it is made again is a Failure like any other.
    """

    def __init__(self, source):
        self._source, self._pickled = source, None

    def __getstate__(self):
        return {"_source": None, "_pickled": bytes(ForkingPickler.dumps(self._source))}

    def __getitem__(self, key):
        """A packed mini-batch, or a Failure."""
        try:
            if self._source is None:
                self._source = pickle.loads(self._pickled)
            return pack(fetch_of(self._source, key))
        except Exception as error:
            return Failure.of(error)
