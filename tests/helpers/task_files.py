"""Task files as users write them: a right one, and what may be changed in it."""

import textwrap

SINE = textwrap.dedent(
    """\
    import torch
    from torch import nn

    from parle_hpc import Task


    class Points(torch.utils.data.Dataset):
        def __init__(self, count, seed):
            self.x = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index] + 0.01 * torch.randn(1), torch.sin(6 * self.x[index])


    class Sine(Task):
        lower_is_better = False

        class Options(Task.Options):
            width: int = 16

        def model(self):
            return nn.Sequential(nn.Linear(1, self.options.width), nn.Tanh(), nn.Linear(self.options.width, 1))

        def dataset(self, part):
            return Points(400, 0) if part == "train" else Points(90, 1)

        def loss(self, model, batch):
            return nn.functional.mse_loss(model(batch[0]), batch[1])

        def scores(self, model, batch):
            return {"close": ((model(batch[0]) - batch[1]).abs() < 0.3).flatten().float()}
    """
)
SMALL = ("--schedule.lr", "0.02", "--algorithm.L", "5", "--data.batch_size", "40")


def write(folder, *changes, name="sine.py"):
    """The file, in which each (old, new) of `changes` is made; its path."""
    text = SINE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path
