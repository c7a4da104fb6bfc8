"""Which GPU a rank takes, and the way of the gradients; the GPUs are made up."""

import json
from types import SimpleNamespace

import pytest
from helpers.mpi import mpirun, our_lines

from parle_hpc.cluster import gpus
from parle_hpc.cluster.gpus import Seat
from parle_hpc.errors import BadInput

PLACE = {"pci_domain_id": 0, "pci_bus_id": 0x3B, "pci_device_id": 0}


def seats(*cards, nodes=(0, 0, 0, 0), devices=None, nccl=True):
    """Seats of ranks that take these cards, None for none."""
    found = []
    for rank, (card, node, device) in enumerate(zip(cards, nodes, devices or cards, strict=False)):
        gpu = (0,) if card is None else (2, rank % 2, card, device)
        found.append(Seat(rank, f"host{node}", node, nccl, *gpu))
    return found


@pytest.mark.parametrize(
    ("properties", "number", "visible", "expected"),
    [
        ({"uuid": "u1", **PLACE}, 0, None, ("0000:3b:00", "u1")),
        ({"uuid": "m1", "name": "A100 MIG 1g.5gb", **PLACE}, 0, None, ("0000:3b:00", "m1")),
        # torches that tell less
        ({"uuid": "u1"}, 0, "7", ("u1", "u1")),
        ({"uuid": "m1", "name": "A100 MIG 1g.5gb"}, 0, "MIG-m1", ("MIG", "m1")),
        ({}, 1, "4, 6", ("6", "6")),
        ({}, 1, None, ("1", "1")),
        ({}, 0, "", ("0", "0")),
        ({"name": "A100 MIG 1g.5gb"}, 0, "MIG-m2", ("MIG", "MIG-m2")),
    ],
)
def test_a_gpu_is_known_by_its_place_on_the_bus(properties, number, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus.identity(SimpleNamespace(**{"name": "A100", **properties}), number, environment) == expected


FOUR = ("a", "b", "c", "d")
HOST, TURNS = ": their gradients go through the host; start as many", "; start as many"


@pytest.mark.parametrize(
    ("m", "here", "way", "line"),
    [
        (2, seats(*FOUR), [False, False], None),
        (4, seats("a", "b", "a", "b", nodes=(0, 0, 1, 1)), [False], None),
        (2, seats("a", "b", "c", "c"), [False, True], f"ranks 2, 3 on host0 share one GPU{HOST}"),
        (2, seats("a", "a", "a", "a"), [True, True], f"ranks 0, 1, 2, 3 on host0 share one GPU{HOST}"),
        (
            4,
            seats("a", "b", "a", "b"),
            [True],
            f"ranks 0, 2 on host0 share one GPU, and others do{HOST}",
        ),
        # on one GPU there, on two here
        (2, seats("a", "b", "a", "a", nodes=(0, 0, 1, 1)), [False, True], f"ranks 2, 3 on host1 share one GPU{HOST}"),
        (4, seats("a", "b", "a", "a", nodes=(0, 0, 1, 1)), [True], f"ranks 2, 3 on host1 share one GPU{HOST}"),
        # of two replicas, each of which is a communicator of its own to NCCL
        (
            2,
            seats("a", "b", "a", "b"),
            [False, False],
            f"ranks 0, 2 on host0 share one GPU, and others do{TURNS}",
        ),
        (1, seats("a", "a", "b", "c"), [False] * 4, f"ranks 0, 1 on host0 share one GPU{TURNS}"),
        # parts of a card
        (1, seats("a", "a", "a", "a", devices=FOUR), [False] * 4, None),
        (2, seats("a", "b", "a", "b", devices=FOUR), [False, False], None),
        (2, seats("a", "a", "b", "c", devices=FOUR), [True, False], f"ranks 0, 1 on host0 share one GPU{HOST}"),
        (2, seats(*FOUR, nccl=False), [True, True], None),
        (2, seats("a", "b", None, None), [False, True], None),
        (4, seats("a", "b", "c", None), [True], None),
        (2, seats(None, None, None, None), [True, True], None),
    ],
)
def test_nccl_where_each_rank_of_a_replica_has_a_card(m, here, way, line):
    assert [gpus.through_host(here[i : i + m]) for i in range(0, 4, m)] == way
    told = gpus.slower(here, m)
    assert told is line is None or told.startswith(line)


def test_a_gpu_for_all_or_for_none():
    whole, some, none = seats(*FOUR), seats("a", "b", None, None, nodes=(0, 0, 1, 2)), seats(*[None] * 4)
    assert [gpus.device_of(seat, whole, "auto", {}) for seat in whole] == [0, 1, 0, 1]
    assert [gpus.device_of(here[0], here, "cpu", {}) for here in (whole, some, none)] == [None] * 3
    assert gpus.device_of(none[0], none, "auto", {}) is None
    for choice in ("auto", "cuda"):
        for seat in some:
            with pytest.raises(
                BadInput, match=f"--run.device {choice}: ranks 2, 3 on host1, host2 see no GPU, the others"
            ):
                gpus.device_of(seat, some, choice, {})
    with pytest.raises(BadInput, match=r"torch finds no GPU here; use --run.device cpu, or unset CUDA_VISIBLE_DEVICES"):
        gpus.device_of(none[0], none, "cuda", {"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.cluster
def test_what_ranks_decide():
    each, all_of_node, one = [[1], [2], [3], [4]], [[1, 2, 3, 4]] * 4, [[7]] * 4
    some, none = [[1], [2], [3], []], [[]] * 4
    cases = [
        (2, True, each),
        (2, True, all_of_node),
        (2, False, each),
        (2, True, one),
        (4, True, one),
        (2, True, [[1, 2]] * 4),
    ]
    cases += [(2, True, some), (2, True, none)]
    result = mpirun(4, "gpus.py", json.dumps(cases))
    assert result.returncode == 0, result.stderr
    own, by_number = ["cuda:0"] * 4, [f"cuda:{i}" for i in range(4)]
    refused = "--run.device auto: rank 3 on "
    decided = json.loads(result.stdout)
    *with_gpus, with_some, without = decided
    expected = [
        (own, False),
        (by_number, False),
        (own, True),
        (own, True),
        (own, False),
        (["cuda:0", "cuda:1"] * 2, False),
    ]
    assert with_gpus == [[[device, host] for device in devices] for devices, host in expected]
    assert [host for _, host in with_some] == [False, False, True, True]
    assert all(line.startswith(refused) for line, _ in with_some)
    assert without == [["cpu", True]] * 4
    # once for each run, whatever is asked for how often
    shared = ["ranks 0, 1, 2, 3 on "] * 2 + ["ranks 0, 2 on "]
    lines = our_lines(result)
    assert len(lines) == len(shared)
    assert all(line.startswith(start) for line, start in zip(lines, shared, strict=True))
    assert ["the host" in line for line in lines] == [True, False, False]
