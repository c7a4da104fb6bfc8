"""A DataLoader's mini-batches by their number, so that a run that goes on sees what it would have seen."""

import torch

from ..checkpoints.resume import random_state, seed_of, set_random_state
from ..errors import BadInput


def over(loader, steps, seed):
    """Yield (step, mini-batch) for each of `steps`, in a row, of passes over `loader`.

    The sampler's set_epoch is called for each pass, and worker processes are seeded by it. seed: of this rank.

    Raises BadInput where the order of the samples does not follow from the pass.
    """
    sampler = getattr(loader, "sampler", None)
    if not hasattr(sampler, "set_epoch"):
        raise BadInput(
            f"the loader's sampler, {type(sampler).__name__}, has no set_epoch, by which a run that goes on finds its "
            "place; take torch.utils.data.DistributedSampler"
        )
    if loader.generator is None:
        # of what seeds the workers: dropout's own would be drawn from again where a run goes on
        loader.generator = torch.Generator()
    batches = None
    for step in steps:
        epoch, done = divmod(step, len(loader))
        if batches is None or not done:
            sampler.set_epoch(epoch)
            loader.generator.manual_seed(seed_of(seed, epoch))
            kept = random_state() if done else None
            batches = iter(loader)
            for _ in range(done):
                next(batches)
            if done:
                set_random_state(kept)
        yield step, next(batches)
