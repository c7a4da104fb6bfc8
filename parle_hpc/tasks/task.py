"""What is trained, as a class: the network, its data, the loss and the scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

Draw = Callable[[Callable[[np.random.Generator, int], np.ndarray]], torch.Tensor]


class Task:
    """What a run trains; a file of your own has a class over it, with `model`, `dataset`, `loss` and `scores`.

        class Sine(Task):
            class Options(Task.Options):
                width: int = 64

            def model(self):
                return nn.Sequential(nn.Linear(1, self.options.width), nn.Tanh(), nn.Linear(self.options.width, 1))

            def dataset(self, part):
                x = torch.rand(4096 if part == "train" else 512, 1)
                return TensorDataset(x, torch.sin(6 * x))

            def loss(self, model, batch):
                return mse_loss(model(batch[0]), batch[1])

            def scores(self, model, batch):
                return {"distance": (model(batch[0]) - batch[1]).abs().flatten(1).mean(1)}

    `[task] file = "sine.py"` in a recipe, or --task.file sine.py, trains it; `[task] width = 32`, or --task.width 32,
    sets an option. Every rank makes its own object of it, and so does each loader process.

    Attributes:
        options: an object of Options, a pydantic model, whose fields have defaults, types and bounds.
        lower_is_better: of the first score.
        units: {score: what is written behind it}, "%" for instance.
        draws: whether the samples of `dataset` have chance in them, for which its generators are then seeded. Where
            not, a thread fetches them beside a GPU.
        evaluation_batch: samples in a forward pass of a validation; None: as many as a rank trains with at once.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", protected_namespaces=())

    lower_is_better = True
    units: dict[str, str] = {}  # noqa: RUF012
    draws = True
    evaluation_batch: int | None = None

    def __init__(self, options: BaseModel | None = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def model(self) -> torch.nn.Module:
        """A new network; torch's generator is seeded, and all ranks take the weights of rank 0."""
        raise NotImplementedError

    def dataset(self, part: str) -> Any:
        """The samples of `part`, "train" or "validation": any object with __len__ and __getitem__(index).

        Where it has __getitems__(indices), that is called for a whole mini-batch.
        """
        raise NotImplementedError

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples: tensors, or tuples, lists and dicts of them."""
        return torch.utils.data.default_collate(samples)

    def prepare(self, batch: Any, draw: Draw | None) -> Any:
        """A batch as `loss` and `scores` see it, made on the device that trains.

        Args:
            batch: what `collate` made, moved to the device. On a GPU the next one is prepared while this one trains.
            draw: for chance, such as augmentation; None where the network is validated. draw(f) gives this rank's rows
                of f(generator, count), an array with a row for each of the `count` samples of the replica's mini-batch:
                a function of seed, replica and step, whatever the number of ranks.
        """
        return batch

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The mean over the batch's samples of what is minimised, f, shape ()."""
        raise NotImplementedError

    def scores(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """{name: a value for each sample, shape (samples,)}; their means are reported, and the first says what is best.

        Called in evaluation mode, without gradients. A network that is called with the same objects as by `loss` is not
        run again.
        """
        raise NotImplementedError
