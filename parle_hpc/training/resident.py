"""Whether the data of a run lie in the memory of the GPU that trains."""

import torch

from ..data.resident import fits


def keep_on(device, sources, data, ranks):
    """Bring the data to a GPU where they fit; a line that says so, in a list.

    Args:
        device: torch device.
        sources: Sources.
        data: the section of the settings.
        ranks: number of those that take this GPU.
    """
    size = 0 if data.workers else sources.nbytes
    if device.type != "cuda" or not size:
        return []
    free, _ = torch.cuda.mem_get_info(device)
    if not fits(size, free, data.device_memory, ranks):
        return []
    sources.reside(device)
    return [f"data on the GPU, {size / 1e6:,.0f} MB"]
