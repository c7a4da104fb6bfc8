"""The learning rates of each step: eta and, where asked, eta'."""

import math
from bisect import bisect_right

from torch.optim.lr_scheduler import LambdaLR, MultiStepLR


class Schedule:
    """Warm-up, then drops or a half cosine, of eta, of eta', or of both.

    Args:
        optimizer: whose lr is eta, which stays where settings.outer is false.
        also: optimizer whose lr is eta', which goes the same way; None where eta' stays.
        settings: section `schedule`.
        steps_per_epoch, steps: mini-batches in an epoch, and in the run.
    """

    def __init__(self, optimizer, also, settings, steps_per_epoch, steps):
        self._settings, self._steps = settings, steps
        self._warmup = round(settings.warmup * steps_per_epoch)
        self._drops = sorted(round(epochs * steps_per_epoch) for epochs in settings.drops)
        if settings.kind == "drops" and not self._warmup and also is None:
            self._parts = [MultiStepLR(optimizer, self._drops, gamma=1 / settings.drop_factor)]
        else:
            goes = (optimizer if settings.outer else None, also)
            self._parts = [LambdaLR(o, self.factor) for o in goes if o is not None]

    def factor(self, step):
        """eta of a step, counted from 0, over schedule.lr."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._settings.kind == "drops":
            return self._settings.drop_factor ** -bisect_right(self._drops, step)
        least, over = self._settings.least, (step - self._warmup) / max(1, self._steps - self._warmup)
        return least + (1 - least) * (1 + math.cos(math.pi * min(1.0, over))) / 2

    def step(self):
        """A mini-batch is done."""
        for part in self._parts:
            part.step()

    def begin_at(self, step):
        """Go on as if so many mini-batches were done."""
        for part in self._parts:
            for group in part.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.factor(step)
        self.load_state_dict({"step": step})

    def state_dict(self):
        """What a checkpoint keeps of it: the rest is of the settings, which may have changed, and of the optimiser."""
        return {"step": self._parts[0].last_epoch}

    def load_state_dict(self, state):
        """Continue from there, with the rates that the groups have by now."""
        step = state["step"]
        for part in self._parts:
            state = part.state_dict()
            rates = [group["lr"] for group in part.optimizer.param_groups]
            state.update(last_epoch=step, _step_count=step + 1, _last_lr=rates)
            part.load_state_dict(state)
