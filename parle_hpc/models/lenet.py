"""LeNet of section 4.2."""

from torch import nn

from .symmetry import chain


class LeNet(nn.Sequential):
    """Two 5x5 convolutions of 20 and 50 channels and 500 hidden units, each with BatchNorm, ReLU and dropout.

    Images are (batch, in_channels, 28, 28); 132,220 parameters for one channel and 10 classes.

    Args:
        num_classes, in_channels: of the data.
        dropout: probability, after each convolution's pooling and after the hidden units.
    """

    def __init__(self, *, num_classes=10, in_channels=1, dropout=0.25):
        super().__init__(
            *self._convolution(in_channels, 20, pool=3, dropout=dropout),
            *self._convolution(20, 50, pool=2, dropout=dropout),
            nn.Flatten(),
            nn.Linear(50 * 2 * 2, 500),
            nn.BatchNorm1d(500),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(500, num_classes),
        )

    def symmetries(self):
        """The permutations of channels that change nothing: list of Symmetry."""
        return chain(self)

    @staticmethod
    def _convolution(inputs, outputs, *, pool, dropout):
        yield nn.Conv2d(inputs, outputs, 5)
        yield nn.BatchNorm2d(outputs)
        yield nn.ReLU()
        yield nn.MaxPool2d(pool)
        yield nn.Dropout(dropout)
