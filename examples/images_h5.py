"""Images of your own in an HDF5 file: `images`, uint8, N x H x W x C, and `labels`, 0 to K - 1. Every tenth validates.

    mpirun -np 4 python -m parle_hpc.train --task.file images_h5.py --task.path FILE.h5 --data.workers 2
    python -m parle_hpc.evaluate RUN_DIR

Samples are read one by one when they are due, so the file may be larger than memory; --task.width sets the network's.
"""

import os
from typing import Annotated

import h5py
import torch
from pydantic import AfterValidator, Field
from torch import nn
from torch.nn.functional import cross_entropy

from parle_hpc import Task


class Samples:
    """(Image, label) of some rows of the file, which is opened by the process that reads, and not before."""

    def __init__(self, path, rows):
        self.path, self.rows, self.file = path, rows, None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if self.file is None:
            self.file = h5py.File(self.path)
        row = self.rows[index]
        return self.file["images"][row], int(self.file["labels"][row])


class Images(Task):
    class Options(Task.Options):
        path: Annotated[str, AfterValidator(os.path.abspath)] = Field(description="HDF5 file with images and labels")
        width: int = Field(16, ge=1, description="channels of the first convolution")

    units = {"error": "%"}

    def __init__(self, options):
        super().__init__(options)
        with h5py.File(options.path) as file:
            self.count, self.channels = len(file["images"]), file["images"].shape[3]
            self.classes = int(file["labels"][:].max()) + 1

    def model(self):
        width = self.options.width
        return nn.Sequential(
            nn.Conv2d(self.channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(2 * width * 16, self.classes),
        )

    def dataset(self, part):
        rows = [row for row in range(self.count) if (row % 10 == 9) == (part == "validation")]
        return Samples(self.options.path, rows)

    def prepare(self, batch, draw):
        images = batch[0].permute(0, 3, 1, 2).float() / 255
        if draw is not None:  # while it trains, half of the images are mirrored
            mirrored = draw(lambda generator, count: generator.random(count) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images, batch[1]

    def loss(self, model, batch):
        return cross_entropy(model(batch[0]), batch[1])

    def scores(self, model, batch):
        return {"error": 100.0 * (model(batch[0]).argmax(1) != batch[1])}
