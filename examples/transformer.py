"""A transformer of your own that learns to sort, with AdamW inside of Parle, as the recipe beside this file says.

    mpirun -np 4 python -m parle_hpc.train --recipe transformer.toml
    mpirun -np 4 python -m parle_hpc.train --recipe transformer.toml --task.layers 4 --algorithm.inner_lr 5e-4

A sample is a row of digits, and the target the same digits in their order.
"""

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from parle_hpc import Task

DIGITS = 10


class Transformer(nn.Module):
    """For each place the logits of the digit that belongs there, (samples, length, DIGITS)."""

    def __init__(self, length, width, layers, dropout):
        super().__init__()
        self.digits = nn.Embedding(DIGITS, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 8, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.logits = nn.Linear(width, DIGITS)

    def forward(self, rows):
        return self.logits(self.layers(self.digits(rows) + self.places))


class Sorting(Task):
    class Options(Task.Options):
        length: int = Field(8, ge=2, description="digits in a row")
        width: int = Field(32, ge=8, multiple_of=8, description="of the transformer; a head has 8 of it")
        layers: int = Field(2, ge=1, description="blocks, one after the other")
        dropout: float = Field(0.1, ge=0, lt=1, description="probability that a unit is dropped")

    units = {"error": "%"}

    def model(self):
        o = self.options
        return Transformer(o.length, o.width, o.layers, o.dropout)

    def dataset(self, part):
        count, seed = (8192, 0) if part == "train" else (512, 1)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(DIGITS, (count, self.options.length), generator=generator)
        return TensorDataset(rows, rows.sort(1).values)

    def loss(self, model, batch):
        rows, ordered = batch
        return cross_entropy(model(rows).flatten(0, 1), ordered.flatten())

    def scores(self, model, batch):
        rows, ordered = batch
        return {"error": 100 * (model(rows).argmax(2) != ordered).float().mean(1)}
