"""This rank's mini-batches, as the network sees them."""

from ..errors import BadInput
from .augment import PAD, augment


class Loader:
    """Mini-batches by their number, on the device that trains.

    Args:
        part: Part that is trained on.
        batches: MiniBatches, which says what is in each.
        device: torch device.
        augmented: mirror and shift the images, section 4.3.

    Raises BadInput where they are too small to be shifted.
    """

    def __init__(self, part, batches, device, augmented):
        height, width = part.images.shape[2:]
        if augmented and min(height, width) <= PAD:
            raise BadInput(
                f"--data.augment true: images of {height} x {width} cannot be shifted by {PAD}; leave it out"
            )
        self._part, self._batches, self._device, self._augmented = part, batches, device, augmented

    def __call__(self, step):
        """Images, float32 (batch_size / m, C, H, W), and labels of this rank in mini-batch `step`."""
        images, labels = self._part.batch(self._batches.indices(step), self._device)
        return augment(images, self._batches.moves(step)) if self._augmented else images, labels
