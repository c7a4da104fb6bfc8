"""What the benchmarks share: how they measure (bodies in turn, after three rounds to warm up), and how they report."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

# what hosts and ranks are made of belongs to the tests
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


class Pair:
    """A communicator over two replicas that always agree, seen from the first; without a network."""

    def Get_size(self):
        return 2

    def Get_rank(self):
        return 0

    def Iallgather(self, send, receive):
        receive[:] = np.concatenate([send, send])
        return self

    def Ialltoall(self, send, receive):
        mine = send[: len(send) // 2]
        receive[:] = np.concatenate([mine, mine])
        return self

    def Idup(self):
        return self, self

    def Test(self):
        return True


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


def shown(quarters, digits=1, scale=1e3):
    """Quartiles of seconds as "median [25 %, 75 %]" in ms; with scale=1 as they are."""
    low, median, high = (f"{scale * q:.{digits}f}" for q in quarters)
    return f"{median} [{low}, {high}]"


def command_line(about):
    """A command line with --json, for `write`."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", help="write the results there too")
    return made


def write(results, path):
    """The results as JSON, where a path was given."""
    if path:
        Path(path).write_text(json.dumps(results, indent=2))


def device_name(device):
    return torch.cuda.get_device_name() if device.type == "cuda" else str(device)
