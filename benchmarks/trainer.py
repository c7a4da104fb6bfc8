"""The trainer's own loop beside a plain, tuned loop of torch: in one process, taking turns round by round.

    python benchmarks/trainer.py [--cases lenet_mnist gpt_text ...] [--repeat 24] [--algorithm parle] [--threads 1]
                                 [--device cpu] [--precision fp32 bf16] [--compile no yes] [--data DIR] [--json FILE]

A turn of the trainer's is a round, with all that it does between two: agreement, metrics, checkpoints, progress; no
validation. The plain loop has the same network, mini-batch and precision; its data are float32 in the memory of the
device, its optimiser is torch's fused SGD with Nesterov's momentum, or the recipe's AdamW with the gradient cut to its
norm; it checks, logs and saves nothing. Samples per second are medians with quartiles; the ratio is that of a turn to
the plain one beside it: above 1 the trainer is faster. Images are random; --data takes NAME.h5 from a folder.

On a GPU it prints also the operations of forward and backward in a second, as torch counts them, the memory at its
peak, and the shares of a round that forward, backward, step and coupling take, one after the other.
"""

import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from bench import command_line, device_name, quartiles, synchronised_time, write
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from parle_hpc import Topology
from parle_hpc.settings import load, settle
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.loop import backward, one_round
from parle_hpc.training.session import Session
from parle_hpc.training.setup import set_up

WARM = 3  # rounds of each before the first that counts
SHAPES = {"mnist": (1, 28, 60_000), "cifar10": (3, 32, 50_000)}
# what is changed of a recipe: the plain loop has neither ZCA nor augmentation, and random images teach nothing
PLAIN = ["--data.preprocessing", "standardize", "--data.augment", "false", "--schedule.lr", "1e-4"]
CASES = {
    "lenet_mnist": ["--recipe", "lenet_mnist", "--schedule.lr", "1e-4"],
    "gpt_text": ["--recipe", "gpt_text"],
    "allcnn": ["--recipe", "allcnn_cifar10", *PLAIN],
    "wrn_16_4": ["--recipe", "wrn_cifar10", *PLAIN, "--model.depth", "16", "--model.widen", "4"],
    "wrn_28_10": ["--recipe", "wrn_cifar10", *PLAIN],
}


def random_images(folder, name):
    """A file of random images of a data set's shape."""
    channels, size, count = SHAPES[name]
    rng, path = np.random.default_rng(0), Path(folder) / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(name=name, classes=10, mean=[0.5] * channels, std=[0.25] * channels)
        for part, number in (("train", count), ("test", 500)):
            file[f"{part}/images"] = rng.integers(0, 256, (number, channels, size, size), np.uint8)
            file[f"{part}/labels"] = rng.integers(0, 10, number)
    return path


class Plain:
    """A loop as one writes it who wants it fast and nothing else."""

    def __init__(self, settings, sources, device, compiles):
        self._settings, self._task = settings, sources.task
        torch.manual_seed(0)
        self.model = sources.task.model().to(device)
        self._gpt = settings.task.name == "language"
        self._prepare = self._texts(device) if self._gpt else self._images(device)
        self._order = torch.zeros(0, dtype=torch.int64, device=device)
        a, rate = settings.algorithm, settings.schedule.lr
        if a.inner == "adamw":
            self._optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=a.inner_lr, weight_decay=a.weight_decay, fused=True
            )
        else:
            self._optimizer = torch.optim.SGD(
                self.model.parameters(),
                lr=rate,
                momentum=0.9,
                nesterov=True,
                weight_decay=a.weight_decay,
                fused=True,
            )
        mode = "reduce-overhead" if device.type == "cuda" else None
        self._forward = torch.compile(self._loss, mode=mode) if compiles else self._loss
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.run.precision == "bf16")
        self._channels_last(device)

    def _channels_last(self, device):
        if not self._gpt and device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)

    def _images(self, device):
        part = self._task.data.train
        blocks = np.array_split(np.arange(len(part)), 1 + len(part) // 1000)
        images = torch.cat([part.preprocess(torch.from_numpy(part.images[block])) for block in blocks]).contiguous()
        images, labels = images.to(device), torch.from_numpy(part.labels).to(device)
        if device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        self._samples = len(images)
        return lambda chosen: (images[chosen], labels[chosen])

    def _texts(self, device):
        tokens, context = (
            torch.from_numpy(self._task.data.train.astype(np.int64)).to(device),
            self._task.options.context,
        )
        self._samples, ahead = len(tokens) // context - 1, torch.arange(context + 1, device=device)

        def prepare(chosen):
            starts = chosen * context + torch.randint(context, chosen.shape, device=device)
            found = tokens[starts[:, None] + ahead]
            return found[:, :-1], found[:, 1:]

        return prepare

    def _loss(self, batch):
        return self._task.loss(self.model, batch)

    def round(self, steps):
        """So many mini-batches."""
        total, size = 0, self._settings.data.batch_size
        clip, params = self._settings.algorithm.clip, list(self.model.parameters())
        for _ in range(steps):
            if len(self._order) < size:
                self._order = torch.randperm(self._samples, device=self._order.device)
            chosen, self._order = self._order[:size], self._order[size:]
            batch = self._prepare(chosen)
            self._optimizer.zero_grad()
            with self._autocast:
                loss = self._forward(batch)
            loss.backward()
            if clip is not None:
                clip_grad_norm_(params, clip)
            self._optimizer.step()
            total = total + loss.detach()
        return total.item()


def parts_of(parts):
    """{part of a round: seconds}, each waited for before the next begins, and FLOP of forward and backward."""
    p, device, took = parts, parts.computing.device, dict.fromkeys(("data", "forward", "backward", "step"), 0.0)

    def clock(name, started):
        now = synchronised_time(device)
        took[name] += now - started
        return now

    with FlopCounterMode(display=False) as counter:
        backward(p.computing, p.loader(p.tally.step))
    p.optimizer.zero_grad()
    now, waited = synchronised_time(device), p.optimizer.coupling_seconds
    for _ in range(p.optimizer.round_length):
        ((_, batch),) = p.loader(p.tally.step)
        now = clock("data", now)
        loss = p.computing.loss(batch)
        now = clock("forward", now)
        loss.backward()
        now = clock("backward", now)
        p.optimizer.step()
        p.optimizer.zero_grad()
        p.tally.step += 1
        now = clock("step", now)
    took["coupling"] = p.optimizer.coupling_seconds - waited
    took["step"] -= took["coupling"]
    return took, counter.get_total_flops()


def on_a_gpu(parts, samples_per_second):
    """What only a GPU shows of a case, as a dict."""
    torch.cuda.reset_peak_memory_stats()
    took, operations = parts_of(parts)
    batch = parts.settings.data.batch_size
    return {
        "TFLOP/s": operations * samples_per_second / batch / 1e12,
        "GB at the peak": torch.cuda.max_memory_allocated() / 1e9,
        **{f"share of {name}": value / sum(took.values()) for name, value in took.items()},
    }


def measure(given, arguments, topology, compiles):
    """Results of one case."""
    settings = load(given)
    settle(settings, topology.world.Get_size())
    with tempfile.TemporaryDirectory() as folder, Session(out=Path(folder) / "run", topology=topology) as session:
        parts = set_up(settings, session)
        torch.set_num_threads(arguments.threads)
        parts.computing.model.train()
        device, steps = parts.computing.device, parts.optimizer.round_length
        plain = Plain(settings, Sources(settings), device, compiles)
        seconds, rounds = {"plain loop": [], "trainer": []}, session.rounds(10**6)

        def turn():
            next(rounds)
            one_round(parts)

        for i in range(WARM + arguments.repeat):
            for name, body in (("plain loop", lambda: plain.round(steps)), ("trainer", turn)):
                started = synchronised_time(device)
                body()
                if i >= WARM:
                    seconds[name].append(synchronised_time(device) - started)
        samples = steps * settings.data.batch_size
        speeds = {name: quartiles([samples / took for took in values]) for name, values in seconds.items()}
        pairs = zip(*seconds.values(), strict=True)
        found = {**speeds, "trainer / plain loop": quartiles([theirs / ours for theirs, ours in pairs])}
        if device.type == "cuda":
            found |= on_a_gpu(parts, speeds["trainer"][1])
        rounds.close()
        parts.optimizer.finish()
    return found


def main():
    parser = command_line(__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=["lenet_mnist", "gpt_text"], help="what is trained"
    )
    parser.add_argument("--repeat", type=int, default=24, help="turns of each (default: 24)")
    parser.add_argument("--algorithm", default="parle", help="of the trainer: parle, entropy_sgd, elastic_sgd or sgd")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="of fp32, tf32, bf16 (default: fp32)")
    parser.add_argument("--compile", nargs="+", choices=["no", "yes"], default=["no"], help="(default: no)")
    parser.add_argument("--batch", help="samples in a mini-batch (default: the recipe's)")
    parser.add_argument("--data", type=Path, help="folder with mnist.h5 and cifar10.h5, from prepare")
    arguments = parser.parse_args()
    topology = Topology.split(replicas=1)
    results = {"torch": torch.__version__, "threads": arguments.threads, "batch": arguments.batch}
    with tempfile.TemporaryDirectory() as folder:
        made = {name: (arguments.data or Path(folder)) / f"{name}.h5" for name in SHAPES}
        for case in arguments.cases:
            name = load(CASES[case]).data.name
            if name in SHAPES and not made[name].exists():
                random_images(folder, name)
            for precision in arguments.precision:
                for compiles in arguments.compile:
                    given = [*CASES[case], "--run.precision", precision, "--run.device", arguments.device]
                    given += ["--run.compile", str(compiles == "yes").lower(), "--algorithm.name", arguments.algorithm]
                    given += ["--data.path", str(made[name])] if name in made else []
                    given += ["--data.batch_size", arguments.batch] if arguments.batch else []
                    title = f"{case}, {precision}{', compiled' * (compiles == 'yes')}"
                    results[title] = measure(given, arguments, topology, compiles == "yes")
                    show(title, results[title])
    results["device"] = device_name(torch.device(arguments.device))
    write(results, arguments.json)


def show(title, found):
    print(title)
    for name, values in found.items():
        if isinstance(values, list):
            low, median, high = (f"{value:,.3f}" if values[1] < 10 else f"{value:,.0f}" for value in values)
            print(f"    {name:22} {median} [{low}, {high}]", flush=True)
        else:
            print(f"    {name:22} {values:.3f}")


if __name__ == "__main__":
    main()
