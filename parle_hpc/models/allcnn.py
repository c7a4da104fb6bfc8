"""All-CNN-C of Springenberg et al., "Striving for simplicity" (arXiv:1412.6806), for section 5."""

from torch import nn

from .symmetry import chain


class AllCNN(nn.Sequential):
    """Nine convolutions, two of them with stride 2 in place of pooling, and a mean over what is left of the image.

    Images are (batch, in_channels, H, W), H and W at least 9; 1,369,738 parameters for three channels and 10 classes.
    There is no BatchNorm, as in the original. Weights start as He et al. (arXiv:1502.01852), eq. 10, biases at 0.

    Args:
        num_classes, in_channels: of the data.
        dropout: probability after each convolution with stride 2; before the first convolution it is 0.2, or `dropout`
            where that is less.
        channels: of the first three convolutions; the others have twice as many.
    """

    def __init__(self, *, num_classes=10, in_channels=3, dropout=0.5, channels=96):
        wide = 2 * channels
        super().__init__(
            nn.Dropout(min(0.2, dropout)),
            *self._convolution(in_channels, channels),
            *self._convolution(channels, channels),
            *self._convolution(channels, channels, stride=2),
            nn.Dropout(dropout),
            *self._convolution(channels, wide),
            *self._convolution(wide, wide),
            *self._convolution(wide, wide, stride=2),
            nn.Dropout(dropout),
            *self._convolution(wide, wide, padding=0),
            *self._convolution(wide, wide, size=1, padding=0),
            nn.Conv2d(wide, num_classes, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def symmetries(self):
        """The permutations of channels that change nothing: list of Symmetry."""
        return chain(self)

    @staticmethod
    def _convolution(inputs, outputs, *, size=3, stride=1, padding=1):
        yield nn.Conv2d(inputs, outputs, size, stride, padding)
        yield nn.ReLU()
