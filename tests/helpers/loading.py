"""Tasks of a few lines, as a Loader takes them, known to a worker process by name."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate


class Source:
    """What a Loader needs of a task, around any data set."""

    collate = staticmethod(default_collate)

    def __init__(self, dataset):
        self.dataset = dataset

    def prepare(self, batch, draw):
        return batch


class Part(Source):
    """One of several sources that an Ahead has."""

    def __init__(self, dataset, part):
        super().__init__(dataset)
        self.part = part


class Drawing:
    """Samples that draw from every generator that a user's transforms draw from."""

    def __getitem__(self, index):
        return {"index": index, "drawn": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])}


class Noisy(Source):
    """Draws for the whole mini-batch, twice."""

    def __init__(self, dataset):
        super().__init__(dataset)

    def prepare(self, batch, draw):
        return {**batch, "noise": [draw(lambda rng, count: rng.normal(size=(count, 2))) for _ in range(2)]}


class Logging(Drawing):
    """Writes down what was fetched, and where."""

    def __init__(self, file):
        self.file = file

    def __getitems__(self, indices):
        with open(self.file, "a") as file:
            strange = {"mpi4py", "horovod", "h5py"} & set(sys.modules)
            file.write(f"{os.getpid()} {torch.get_num_threads()} {sorted(strange)} {indices}\n")
        return [self[index] for index in indices]


class Odd(Exception):
    """An exception that its own arguments do not make again."""

    def __init__(self, number, why):
        super().__init__(f"{number}: {why}")


class Failing:
    """Goes wrong in another way at each of its first samples."""

    def __getitem__(self, index):
        if index == 1:
            raise FileNotFoundError(2, "no such picture", "cat.png")
        if index == 2:
            raise Odd(2, "an odd picture")
        if index == 3:
            return threading.Lock()
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class FirstOf(Source):
    @staticmethod
    def collate(samples):
        return samples[0]


class Unmakeable(Source):
    def __reduce__(self):
        return unmakeable, ()


def unmakeable():
    raise ImportError("no module of that name on this node")


class Stuck:
    """The first samples are large, and wait to be sent; then one never comes, whatever is asked of its process."""

    def __init__(self, file):
        self.file = file

    def __getitem__(self, index):
        if index >= 2:
            Path(self.file).touch()
            time.sleep(10_000)
        return np.zeros(1_000_000) if index else 0


class InOrder:
    """MiniBatches of one sample each, whose index is the step."""

    share = batch_size = 1

    def indices(self, step):
        return np.array([step])

    def words(self, step, part):
        return np.arange(8, dtype=np.uint32)

    def draw_at(self, step):
        return None
