"""The GPU that each rank takes: which ranks take the same one, and where NCCL, which wants one for each, is no way."""

from collections import defaultdict
from typing import NamedTuple

from ..errors import BadInput
from .waiting import numbered


class Seat(NamedTuple):
    """Where a rank computes.

    rank, host, node: itself, its host's name, and the first rank there. count: GPUs that it sees; number: of the one
    that it takes, local rank % count. card: where on the node's bus that is; device: itself, which may be a part of a
    card (MIG). number, card and device are None without a GPU. nccl: whether Horovod has NCCL.
    """

    rank: int
    host: str
    node: int
    nccl: bool
    count: int
    number: int | None = None
    card: str | None = None
    device: str | None = None


def find(cuda, local_rank, environment):
    """count, number, card and device of a Seat; cuda: torch.cuda."""
    count = cuda.device_count() if cuda.is_available() else 0
    if not count:
        return (0,)
    number = local_rank % count
    return count, number, *identity(cuda.get_device_properties(number), number, environment)


def identity(p, number, environment):
    """(card, device) of the GPU with this number and properties; what an older torch cannot tell apart is the same."""
    uuid = getattr(p, "uuid", None)
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = visible[number] if len(visible) > number and visible[number] else str(number)
    device = named if uuid is None else str(uuid)
    if hasattr(p, "pci_bus_id"):
        return f"{p.pci_domain_id:04x}:{p.pci_bus_id:02x}:{p.pci_device_id:02x}", device
    return "MIG" if "MIG" in p.name else device, device


def through_host(replica):
    """Whether gradients of a replica, the Seats of its ranks, must go through the host's memory.

    NCCL refuses two ranks on one card, also on parts of it.
    """
    cards = {(seat.node, seat.card) for seat in replica if seat.card is not None}
    return len(cards) < len(replica) or not all(seat.nccl for seat in replica)


def sharing(seats, m):
    """[(Seats on one card, whether two of them are of one replica)], where that is no good.

    Parts of a card for ranks of different replicas, m ranks each, are as good as cards.
    """
    users = defaultdict(list)
    for seat in seats:
        if seat.card is not None:
            users[seat.node, seat.card].append(seat)
    found = []
    for group in users.values():
        inside = len({seat.rank // m for seat in group}) < len(group)
        if inside or len({seat.device for seat in group}) < len(group):
            found.append((group, inside))
    return found


def slower(seats, m):
    """A line on ranks that share GPUs, or None."""
    groups = sharing(seats, m)
    if not groups:
        return None
    group, inside = max(groups, key=lambda found: found[1])
    others = ", and others do" if len(groups) > 1 else ""
    then = ": their gradients go through the host" if inside else ""
    ranks = numbered([seat.rank for seat in group])
    return f"{ranks} on {group[0].host} share one GPU{others}{then}; start as many ranks on a node as it has GPUs"


def device_of(seat, seats, choice, environment):
    """Number of the GPU of a rank's Seat, None for the CPU; choice: "cpu", "cuda", or "auto" for a GPU if there is one.

    Raises BadInput where no rank has the GPU that is asked for, or where some have one alone.
    """
    without = [other for other in seats if other.number is None]
    if choice == "cpu" or (choice == "auto" and len(without) == len(seats)):
        return None
    if len(without) == len(seats):
        raise BadInput(f"--run.device cuda: torch finds no GPU here; use --run.device cpu, or {a_gpu(environment)}")
    if without:
        hosts = ", ".join(dict.fromkeys(other.host for other in without))
        ranks = numbered([other.rank for other in without])
        raise BadInput(f"--run.device {choice}: {ranks} on {hosts} {SOME_WITHOUT}")
    return seat.number


SOME_WITHOUT = (
    "see no GPU, the others do; ask for GPUs on every node (#SBATCH --gpus-per-node=GPUS), or train all on the CPU: "
    "--run.device cpu"
)


def a_gpu(environment):
    """How to come by a GPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in environment:
            return f"unset {name}, which is {environment[name]!r} and may hide it; or ask for a GPU"
    return "ask for a GPU"
