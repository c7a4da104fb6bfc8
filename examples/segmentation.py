"""Segmentation, with a loss and a score of its own: soft Dice, and the intersection over union, where higher is better.

    mpirun -np 4 python -m parle_hpc.train --task.file segmentation.py --schedule.max_rounds 20
    python -m parle_hpc.evaluate RUN_DIR

The data, discs in noise, are made here and need no file; put your images and masks in the place of `discs`.
"""

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import TensorDataset

from parle_hpc import Task


def discs(count, size, seed):
    """Noisy images and their masks, both count x 1 x size x size."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(size).float()
    x, y = (size * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    radius = size * (0.15 + 0.2 * torch.rand(count, 1, 1, generator=generator))
    masks = ((grid - x) ** 2 + (grid[:, None] - y) ** 2 < radius**2).float()[:, None]
    return masks + 0.7 * torch.randn(masks.shape, generator=generator), masks


class UNet(nn.Module):
    """One level down, and up again."""

    def __init__(self, width):
        super().__init__()
        self.above = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.below = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )
        self.last = nn.Conv2d(3 * width, 1, 3, padding=1)

    def forward(self, images):
        above = self.above(images)
        return self.last(torch.cat([above, self.below(above)], 1))


class Segmentation(Task):
    class Options(Task.Options):
        size: int = Field(16, ge=4, multiple_of=2, description="height and width of the images")
        width: int = Field(8, ge=1, description="channels of the first convolution")

    lower_is_better = False

    def model(self):
        return UNet(self.options.width)

    def dataset(self, part):
        count, seed = (1024, 0) if part == "train" else (256, 1)
        return TensorDataset(*discs(count, self.options.size, seed))

    def loss(self, model, batch):
        images, masks = batch
        found = model(images).sigmoid()
        both, sums = (found * masks).sum((1, 2, 3)), (found + masks).sum((1, 2, 3))
        return (1 - (2 * both + 1) / (sums + 1)).mean()

    def scores(self, model, batch):
        images, masks = batch
        found, true = model(images) > 0, masks > 0.5
        both, either = (found & true).sum((1, 2, 3)), (found | true).sum((1, 2, 3))
        return {"iou": (both + 1) / (either + 1)}
