"""Mirror flips and shifted crops of section 4.3, on the device that trains."""

import torch

PAD = 4  # pixels on each side


def moves(random, count):
    """For `count` images how each is moved, as `augment` has it; random: NumPy Generator."""
    return random.integers(0, [2, 2 * PAD + 1, 2 * PAD + 1], (count, 3))


def augment(images, moves):
    """Mirror and shift each image of a mini-batch; pixels that come in from outside are reflections, as in WRN's code.

    Args:
        images: (N, C, H, W) on any device.
        moves: int64 (N, 3) there, one row for each image: mirror it (0 or 1), and where the crop begins in the padded
            image, from above and from the left (0 to 2 PAD); (0, PAD, PAD) leaves it as it is.

    Returns new images of the same shape, in channels_last order.
    """
    count, _, height, width = images.shape
    mirrored, top, left = (column[:, None] for column in moves.unbind(1))
    rows = _reflected(top - PAD + torch.arange(height, device=images.device), height)
    x = torch.arange(width, device=images.device)
    columns = _reflected(left - PAD + torch.where(mirrored.bool(), width - 1 - x, x), width)
    image = torch.arange(count, device=images.device)
    # indices beside a slice come first: (N, H, W, C), which is channels_last once it is seen as (N, C, H, W)
    return images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(index, size):
    """Indices from -PAD to size - 1 + PAD, those outside reflected at the border pixels."""
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)
