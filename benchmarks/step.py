"""What a step of Parle costs beside torch.optim.SGD(nesterov=True, foreach=True), side by side in one run.

    python benchmarks/step.py [--repeat 30] [--threads 1] [--device cpu] [--json FILE]

Three figures, medians over the repeats, with quartiles:
- a mini-batch of LeNet (batch 128, one process): forward, backward and step, without coupling;
- the step alone at 36 million parameters, where memory is the limit: 8 passes against 5 allow a ratio of 1.6;
- floats of state per parameter besides weight and gradient, read from the tensors that live.
"""

import gc

import torch
from bench import Pair, command_line, device_name, quartiles, shown, side_by_side, write
from torch.nn.functional import cross_entropy

from parle_hpc import ElasticSGD, EntropySGD, Parle, models
from parle_hpc.algorithms.sgd import SGD
from parle_hpc.training.memory import keep_freed

NEVER = 10**9  # L so long that no coupling falls into the measurement


def minibatch(make, device):
    torch.manual_seed(0)
    model = models.build("lenet").to(device)
    optimizer = make(model.parameters())
    images, labels = torch.rand(128, 1, 28, 28, device=device), torch.randint(0, 10, (128,), device=device)

    def body():
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return body


def step_alone(make, device):
    # apart from the other's, whose steps it would take for changes from outside
    return make(thirty_six_million(device)).step


def thirty_six_million(device):
    """Parameters of the sizes of a wide residual network's, with gradients."""
    params = [torch.nn.Parameter(torch.randn(640, 640, 3, 3, device=device)) for _ in range(9)]
    params += [torch.nn.Parameter(torch.randn(320, 320, 3, 3, device=device)) for _ in range(3)]
    params += [torch.nn.Parameter(torch.randn(640, device=device)) for _ in range(50)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def state_floats(make):
    """Floats per parameter that an optimiser of two replicas keeps, counted over every tensor alive."""
    p = torch.nn.Parameter(torch.zeros(1_000_000))
    p.grad = torch.ones_like(p)
    gc.collect()
    before = {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}
    optimizer = make([p], Pair())
    for _ in range(4):
        optimizer.step()
    gc.collect()
    storages = {}
    for o in gc.get_objects():
        if issubclass(type(o), torch.Tensor) and id(o) not in before and o.numel():
            storages[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
    storages.pop(p.untyped_storage().data_ptr(), None)
    storages.pop(p.grad.untyped_storage().data_ptr(), None)
    del optimizer
    return round(sum(storages.values()) / 4 / p.numel(), 2)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--repeat", type=int, default=30, help="measurements of each (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed()
    device = torch.device(arguments.device)

    def parle(params, comm=None, **kind):
        return Parle(params, lr=1e-3, L=NEVER, batches_per_epoch=100, comm=comm, **kind)

    def sgd(params):
        return SGD(params, lr=1e-3)

    results = {"torch": torch.__version__, "threads": arguments.threads, "device": device_name(device)}
    size = sum(p.numel() for p in thirty_six_million(device))
    cases = {
        "LeNet mini-batch": {"Parle": minibatch(parle, device), "SGD": minibatch(sgd, device)},
        f"step at {size:,} parameters": {"Parle": step_alone(parle, device), "SGD": step_alone(sgd, device)},
    }
    print(f"{'':28} {'Parle':>24} {'SGD':>24} {'ratio of medians':>18}   (ms: median, quartiles)")
    for case, bodies in cases.items():
        seconds = side_by_side(bodies, arguments.repeat, device)
        quarters = {name: quartiles(values) for name, values in seconds.items()}
        ratio = quarters["Parle"][1] / quarters["SGD"][1]
        results[case] = {"quartiles_seconds": quarters, "ratio": ratio}
        print(f"{case:28} {shown(quarters['Parle'], 3):>24} {shown(quarters['SGD'], 3):>24} {ratio:18.3f}")
    kinds = {
        "Parle current": lambda p, c: Parle(p, lr=1e-3, L=2, batches_per_epoch=9, comm=c),
        "Parle lagged": lambda p, c: Parle(p, lr=1e-3, L=2, batches_per_epoch=9, comm=c, reference="lagged"),
        "Parle average": lambda p, c: Parle(p, lr=1e-3, L=2, batches_per_epoch=9, comm=c, reference="average"),
        "Entropy-SGD": lambda p, c: EntropySGD(p, lr=1e-3, L=2, batches_per_epoch=9),
        "Elastic-SGD": lambda p, c: ElasticSGD(p, lr=1e-3, batches_per_epoch=9, comm=c),
        "SGD": lambda p, c: SGD(p, lr=1e-3),
    }
    results["state_floats"] = {name: state_floats(make) for name, make in kinds.items()}
    print("floats of state per parameter: " + ", ".join(f"{k} {v:g}" for k, v in results["state_floats"].items()))
    write(results, arguments.json)


if __name__ == "__main__":
    main()
