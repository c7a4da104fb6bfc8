"""What AdamW alone makes of the text of gpt_text, beside AdamW inside Parle: the same weights at first, as many steps.

    mpirun -np 4 python benchmarks/language.py --way data_parallel|averaged_once [--seed 0] [--lr 1e-3] [--json FILE]
    mpirun -np 4 python -m parle_hpc.train --recipe gpt_text --run.seed 0       # Parle, its 2 replicas of 2 ranks

data_parallel: one run over all ranks, whose mini-batch is that of both replicas together. averaged_once: two runs, each
over half of the ranks with the mini-batch and the order of a replica, whose weights are averaged at the end. Weight
decay, norm of the gradient, warm-up and the number of steps are the recipe's; the rate goes down to 0.1 of it by half a
cosine. The loss is over the whole validation part. Bytes are what a reduction between the two halves of the ranks must
send at least, over all ranks that share it, by this rank.
"""

import time
from pathlib import Path

import torch
from bench import command_line, write
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

HALVES = 2
REPLICAS = {"data_parallel": 1, "averaged_once": HALVES}


def settings_of(way, seed):
    """Those of gpt_text, with what differs in this way of training."""
    from parle_hpc.settings import load

    settings = load(["--recipe", "gpt_text", "--run.seed", str(seed), "--schedule.least", "0.1"])
    settings.data.batch_size *= HALVES // REPLICAS[way]
    return settings


def train(topology, settings, sources, device, lr, steps):
    """(the network, trained by AdamW data-parallel over each replica, seconds that it took)."""
    from parle_hpc.algorithms.inners import adamw
    from parle_hpc.data.loader import Loader
    from parle_hpc.training.loop import backward
    from parle_hpc.training.schedule import Schedule
    from parle_hpc.training.setup import make_model, share

    a, s = settings.algorithm, settings.schedule
    _, batches = share(settings, sources.train, topology)
    model = make_model(settings, sources.train, topology, device)
    params, loader = list(model.parameters()), Loader(sources.train, batches, device)
    optimizer = adamw([{"params": params}], lr, a.weight_decay)
    scheduler = Schedule(optimizer, None, s, steps / s.epochs, steps)
    topology.world.Barrier()
    started = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad()
        loss = backward(sources.task, model, loader(step))
        topology.average_gradients(params)
        clip_grad_norm_(params, a.clip)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 100 == 0 and topology.world.Get_rank() == 0:
            print(f"step {step + 1}, {time.perf_counter() - started:.0f} s: loss {loss.item():.4f}", flush=True)
    return model, time.perf_counter() - started


@torch.no_grad()
def average(model, topology):
    """Give the network the mean of the replicas' weights."""
    from parle_hpc.cluster.agreement import Group

    flat = parameters_to_vector(model.parameters())
    mean = torch.from_numpy(Group(topology.cross).sum(flat.cpu()) / topology.n)
    vector_to_parameters(mean.to(flat), model.parameters())


def main():
    parser = command_line(__doc__)
    parser.add_argument("--way", choices=REPLICAS, required=True, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of the samples' order (default: 0)")
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's, after the warm-up (default: 1e-3)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default: the recipe's, 400)")
    arguments = parser.parse_args()

    from parle_hpc import Topology
    from parle_hpc.training.computing import Computing
    from parle_hpc.training.opening import open_task
    from parle_hpc.training.validation import Validation

    settings = settings_of(arguments.way, arguments.seed)
    topology = Topology.split(replicas=REPLICAS[arguments.way])
    device = topology.device(settings.run.device)
    sources = open_task(settings, topology, Path())
    model, seconds = train(topology, settings, sources, device, arguments.lr, arguments.steps)

    def loss(comm):
        size = settings.data.batch_size
        return Validation(Computing(sources.task, model, device), sources, size, at_once=size, comm=comm).test().loss

    runs = topology.cross.allgather(loss(topology.replica))
    if topology.n > 1:
        average(model, topology)
    reductions = arguments.steps if topology.n == 1 else 1
    found = {
        **vars(arguments),
        "loss": loss(topology.world),
        "runs": runs,
        "seconds": seconds,
        "bytes": reductions * 4 * sum(p.numel() for p in model.parameters()) // (topology.world.Get_size() // HALVES),
    }
    if topology.world.Get_rank() == 0:
        alone = f", each run alone {', '.join(f'{value:.4f}' for value in runs)}" if topology.n > 1 else ""
        print(
            f"{arguments.way}, seed {arguments.seed}, rate {arguments.lr:g}, {arguments.steps} steps: validation loss "
            f"{found['loss']:.4f} nats a byte{alone}; {seconds:.0f} s; {found['bytes'] / 1e6:.2f} MB sent by this rank"
        )
        write(found, arguments.json)


if __name__ == "__main__":
    main()
