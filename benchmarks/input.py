"""What the data pipeline feeds beside what WRN-16-4 eats, side by side in one run on one device.

    python benchmarks/input.py [--repeat 5] [--threads 1] [--device cpu] [--batch 128] [--json FILE]

A mini-batch of the pipeline: indices drawn, bytes gathered from the memory-mapped file, brought to the device,
contrast-normalised, whitened (ZCA), mirrored and shifted. One of the network: forward and backward. The file is made
for the run: 50,000 random images of CIFAR-10's shape, and a random matrix in ZCA's place, which costs the same.
"""

import tempfile
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import torch
from bench import command_line, device_name, quartiles, shown, side_by_side, write
from torch.nn.functional import cross_entropy

from parle_hpc import models
from parle_hpc.data.loader import Loader
from parle_hpc.data.split import MiniBatches
from parle_hpc.settings import load
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.memory import keep_freed

PIXELS = 3 * 32 * 32


def random_data(path):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update(name="random", classes=10, mean=[0.5] * 3, std=[0.25] * 3)
        for part, size in (("train", 50_000), ("test", 100)):
            file[f"{part}/images"] = rng.integers(0, 256, (size, 3, 32, 32), np.uint8)
            file[f"{part}/labels"] = rng.integers(0, 10, size)
        file["zca/mean"], file["zca/matrix"] = np.zeros(PIXELS), rng.normal(size=(PIXELS, PIXELS)) / 55


def pipeline(path, preprocessing, batch, device):
    given = {"path": path, "name": "random", "preprocessing": preprocessing, "augment": "true"}
    settings = load([f"--data.{key}={value}" for key, value in given.items()])
    batches, step = MiniBatches(np.arange(50_000), batch, seed=0, replica=0), count()
    loader = Loader(Sources(settings).train, batches, device)
    return lambda: loader(next(step))


def network(batch, device):
    model = models.build("wrn", in_channels=3, depth=16, widen=4, dropout=0.4).to(device)
    images = torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")

    def body():
        model.zero_grad()
        with mixed:
            loss = cross_entropy(model(images), labels)
        loss.backward()

    return body


def main():
    parser = command_line(__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, where the network is in bfloat16 (default: cpu)")
    parser.add_argument("--batch", type=int, default=128, help="images in a mini-batch (default: 128)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed()
    device, batch = torch.device(arguments.device), arguments.batch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.h5"
        random_data(path)
        bodies = {f"pipeline, {kind}": pipeline(path, kind, batch, device) for kind in ("zca", "standardize")}
        seconds = side_by_side({**bodies, "WRN-16-4": network(batch, device)}, arguments.repeat, device)
    quarters = {case: quartiles(values) for case, values in seconds.items()}
    eaten = quarters["WRN-16-4"][1]
    results = {"torch": torch.__version__, "threads": arguments.threads, "device": device_name(device), "batch": batch}
    print(f"{'':24} {'images per second':>18} {'times WRN-16-4':>16}   ms of a mini-batch: median [quartiles]")
    for case, (low, median, high) in quarters.items():
        results[case] = {"quartiles_seconds": [low, median, high], "ratio": eaten / median}
        print(f"{case:24} {batch / median:18,.0f} {eaten / median:16.1f}   {shown([low, median, high], 2)}")
    write(results, arguments.json)


if __name__ == "__main__":
    main()
