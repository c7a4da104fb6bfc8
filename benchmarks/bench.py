"""How the benchmarks measure: bodies in turn, in one run, after three rounds to warm up."""

import time

import numpy as np
import torch


def synchronised_time(device):
    """Seconds, when all that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def side_by_side(bodies, repeat, device):
    """{name: seconds of each repeat}, the bodies in turn."""
    seconds = {name: [] for name in bodies}
    for i in range(repeat + 3):
        for name, body in bodies.items():
            started = synchronised_time(device)
            body()
            if i >= 3:
                seconds[name].append(synchronised_time(device) - started)
    return seconds


def quartiles(values):
    """25, 50 and 75 %."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]


def device_name(device):
    return torch.cuda.get_device_name() if device.type == "cuda" else str(device)
