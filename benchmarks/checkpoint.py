"""What a checkpoint of WRN-28-10 costs the training: the copy that it waits for, and the writing beside it.

    python benchmarks/checkpoint.py [--batch 4] [--repeat 5] [--out FOLDER] [--json FILE]

One rank, a replica of its own. Seconds of the copy, of writing and forcing to disk in the background, and of
mini-batches of WRN-28-10 (forward, backward, step) without and with a checkpoint being written, in turn; medians with
quartiles.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from bench import command_line, quartiles, shown, write
from helpers.replicas import Alone
from torch.nn.functional import cross_entropy

from parle_hpc import Parle, models
from parle_hpc.checkpoints import resume
from parle_hpc.checkpoints.saver import Saver
from parle_hpc.training.memory import keep_freed


def main():
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, default=4, help="images in a mini-batch (default: 4)")
    parser.add_argument("--repeat", type=int, default=5, help="checkpoints (default: 5)")
    parser.add_argument("--out", help="folder to write to (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    model = models.build("wrn", in_channels=3)
    params = list(model.parameters())
    optimizer = Parle(params, lr=1e-3, batches_per_epoch=100)
    images, labels = torch.rand(arguments.batch, 3, 32, 32), torch.randint(0, 10, (arguments.batch,))

    def step():
        started = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - started

    step()
    found = {"copy": [], "writing": [], "mini-batch": [], "mini-batch while writing": []}
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        saver = Saver(Path(folder), Alone(), 600, keep=1)
        for i in range(arguments.repeat):
            found["mini-batch"].append(step())
            started = time.perf_counter()
            snapshot = resume.capture(optimizer, model, {}, 0, 1, {})
            found["copy"].append(time.perf_counter() - started)
            started = time.perf_counter()
            saver.start(i, snapshot, {"n": 1, "m": 1, "score": None})
            found["mini-batch while writing"].append(step())
            while not saver.written:
                time.sleep(0.001)
            found["writing"].append(time.perf_counter() - started)
            problem = saver.settle()
            assert problem is None, problem
            size = sum(file.stat().st_size for file in Path(folder).rglob("*.h5"))
    results = {name: quartiles(seconds) for name, seconds in found.items()}
    results["MB"] = size / 1e6
    results["cores"] = len(os.sched_getaffinity(0))
    print(f"WRN-28-10, {sum(p.numel() for p in params):,} parameters: a checkpoint of {size / 1e6:,.0f} MB")
    for name in found:
        print(f"{name:26} {shown(results[name], 3, 1):>24} s")
    write(results, arguments.json)


if __name__ == "__main__":
    main()
