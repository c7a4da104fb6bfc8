"""What a mailbox costs: seconds to leave and to read an x^a of WRN-28-10, and what a round of LeNet waits for it.

    python benchmarks/mailbox.py [--repeat 5] [--rounds 20] [--out FOLDER] [--json FILE]

The first on a file system alone, medians with quartiles; the second beside another member that leaves as often as this
one: seconds that `collect` and `start` take over those of the round. One thread for the mini-batches.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench import command_line, quartiles, shown, write
from torch.nn.functional import cross_entropy

from parle_hpc import Parle, models
from parle_hpc.coupling.mailbox import Member, agree, read
from parle_hpc.coupling.posting import Membership

WRN = 36_479_219  # weights and biases


def times(folder, repeat):
    """{what: seconds of each repeat} of leaving and reading WRN-28-10's x^a."""
    agree(folder, {}, "")
    member, found = Member(folder, 0), {"leave": [], "read": []}
    x = np.random.default_rng(0).normal(size=WRN).astype(np.float32)
    for round in range(repeat):
        started = time.perf_counter()
        member.post(round, x, 0, round)
        left = time.perf_counter()
        read(folder, 0, round, x)
        found["leave"].append(left - started)
        found["read"].append(time.perf_counter() - left)
    member.close()
    return found


def waits(folder, rounds):
    """(Seconds of a round, of them in the coupling, of them for the mailbox), medians over rounds of LeNet."""
    agree(folder, {}, "")
    model = models.build("lenet", in_channels=1)
    images, labels = torch.rand(128, 1, 28, 28), torch.randint(0, 10, (128,))
    other, found = Member(folder, 1), []
    with Membership(Member(folder, 0)) as membership:
        optimizer = Parle(model.parameters(), lr=0.1, batches_per_epoch=468, mailbox=membership)
        for round in range(rounds):
            started = time.perf_counter()
            before = optimizer.coupling_seconds, optimizer.coupling_wait_seconds
            for _ in range(optimizer.L):
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()
                optimizer.step()
            after = optimizer.coupling_seconds, optimizer.coupling_wait_seconds
            found.append((time.perf_counter() - started, *(b - a for a, b in zip(before, after, strict=True))))
            other.post(round, optimizer.x.numpy(), 0, round)
    other.close()
    return np.median(found[3:], axis=0).tolist()


def main():
    parser = command_line(__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="times that WRN-28-10's is left and read (default: 5)")
    parser.add_argument("--rounds", type=int, default=20, help="of LeNet (default: 20)")
    parser.add_argument("--out", help="folder to write to (default: a temporary one)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        seconds = {what: quartiles(values) for what, values in times(Path(folder) / "wrn", given.repeat).items()}
        round, coupling, waited = waits(Path(folder) / "lenet", given.rounds)
    for what, found in seconds.items():
        print(f"{what} 146 MB: {shown(found)} ms")
    print(f"LeNet: a round {round:.3f} s, its coupling {1e3 * coupling:.2f} ms, waiting {100 * waited / round:.3f} %")
    write({**seconds, "round": round, "coupling": coupling, "waited": waited}, given.json)


if __name__ == "__main__":
    main()
