"""Wide residual networks, WRN-d-k of Zagoruyko and Komodakis (arXiv:1605.07146), for sections 4.3 and 4.4."""

import torch
from torch import nn

from .symmetry import Symmetry


class Block(nn.Module):
    """BatchNorm, ReLU, convolution; BatchNorm, ReLU, dropout, convolution; plus the input, or its 1x1 convolution."""

    def __init__(self, inputs, outputs, stride, dropout):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x):
        active = torch.relu(self.norm1(x))
        residual = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WRN(nn.Module):
    """Three groups of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen` channels wide.

    Images are (batch, in_channels, H, W). WRN-28-10 has 36,479,194 parameters for three channels and 10 classes.
    Weights start as He et al. (arXiv:1502.01852), eq. 10, by fan-out.

    Args:
        num_classes, in_channels: of the data.
        dropout: probability, inside the blocks, between their convolutions.
        depth: 6 N + 4 with N = 1, 2, ...
        widen: k.

    Raises ValueError for another depth.
    """

    def __init__(self, *, num_classes=10, in_channels=3, dropout=0.3, depth=28, widen=10):
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"the depth of a WRN is 6 N + 4: 10, 16, 22, 28, ..., not {depth}")
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        blocks, inputs = [], 16
        for group, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for i in range((depth - 4) // 6):
                blocks.append(Block(inputs, outputs, 2 if group and not i else 1, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        last = torch.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(self.pool(last).flatten(1))

    def symmetries(self):
        """The permutations of channels that change nothing: list of Symmetry.

        All that is added up along one stretch of identity shortcuts must move together, and is compared by what begins
        it: the stem, or a 1x1 shortcut. Inside a block the channels between its convolutions are free.
        """
        streams, inside = [([], [], [])], []
        streams[0][0].append("stem")
        for i, block in enumerate(self.blocks):
            filters, norms, readers = streams[-1]
            norms.append(f"blocks.{i}.norm1")
            readers.append(f"blocks.{i}.conv1")
            inside.append(Symmetry((f"blocks.{i}.conv1",), (f"blocks.{i}.norm2",), (f"blocks.{i}.conv2",)))
            if block.shortcut is None:
                filters.append(f"blocks.{i}.conv2")
            else:
                readers.append(f"blocks.{i}.shortcut")
                streams.append(([f"blocks.{i}.shortcut", f"blocks.{i}.conv2"], [], []))
        streams[-1][1].append("norm")
        streams[-1][2].append("head")
        return [Symmetry(*map(tuple, stream)) for stream in streams] + inside
