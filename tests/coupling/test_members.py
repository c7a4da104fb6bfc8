"""Members of a mailbox, jobs of their own: exact when asked, and otherwise they come, differ and go."""

import os
import subprocess

import pytest
import torch
from helpers.moments import until
from helpers.mpi import ENVIRONMENT, PROGRAMS, module, our_lines, passes, warm
from helpers.trainer import TRAIN, events

from parle_hpc.coupling.mailbox import heartbeat

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SMALL = ("--data.samples", 400, "--data.batch_size", 12, "--algorithm.L", 6, "--schedule.max_rounds", 8)
SMALL += ("--run.checkpoint_every", 2, "--run.validate_every", 4)


def of(box, number, *settings):
    """Settings of a member."""
    return (*settings, "--coupling.via", "mailbox", "--coupling.folder", box, "--coupling.member", number)


@pytest.fixture
def started():
    """A function that starts a Python; what still runs after the test is ended."""
    jobs = []

    def start(*command, ranks=1):
        program = PROGRAMS / command[0] if command[0] != "-m" else "-m"
        command = [*warm(), str(program), *map(str, command[1:])]
        command = ["mpirun", "-np", str(ranks), *command] if ranks > 1 else command
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        jobs.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.communicate()


def ended(job):
    """Its output, of a job that must end well."""
    output, errors = job.communicate(timeout=600)
    assert job.returncode == 0, output + errors
    return output


def weights(path):
    """A run's weights, without what BatchNorm counts of a data set, which members and ranks divide in their own way."""
    return {name: value for name, value in torch.load(path, weights_only=True).items() if "running" not in name}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert [name for name in one if not torch.equal(one[name], other[name]) and "tracked" not in name] == []


def test_who_waits_for_the_others_is_a_replica_of_mpi_also_killed_and_gone_on(tmp_path, digits, started):
    n, settings = 3, (*SMALL, "--data.path", digits)
    passes(n, *TRAIN, *settings, "--replicas", n, "--out", tmp_path / "mpi", OMP_NUM_THREADS="1", timeout=600)
    box = tmp_path / "box"
    settings = (*settings, "--coupling.wait_for", n)
    jobs = [started("saves.py", *of(box, a, *settings)) for a in range(n - 1)]
    dying = started("faulty.py", 0, 5, "dies", *of(box, n - 1, *settings))
    dying.communicate(timeout=600)
    assert dying.returncode != 0
    assert "goes on after round" in ended(started(*TRAIN, *of(box, n - 1, *settings)))
    for job in jobs:
        ended(job)
    for a in range(n):
        assert_same_weights(tmp_path / "mpi/reference.pt", box / f"runs/{a}/reference.pt")
    # of the rounds that are saved everywhere nothing stays
    assert heartbeat(box, 0).rounds[0] > 0


def test_members_come_differ_and_go(tmp_path, digits, started):
    """Parle, Elastic-SGD, one that dies and one that comes late; gathered while they train, and at the end."""
    box = tmp_path / "box"
    settings = ("--data.path", digits, "--schedule.max_rounds", 18)
    first = started("beside.py", 8, 3, *of(box, 0, *settings), ranks=2)
    elastic = started("beside.py", 8, 3, *of(box, 1, *settings, "--algorithm.name", "elastic_sgd"))
    # after a round of its own, wherever it begins
    dying = started("faulty.py", 0, 9, "dies", *of(box, 2, *settings))
    until(lambda: all(heartbeat(box, a) and heartbeat(box, a).rounds[-1] == 8 for a in (0, 1)))
    dying.communicate(timeout=600)
    # as it is now
    result = module("parle_hpc.gather", box)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("members    0 after 8 rounds, 1 after 8 rounds\n")
    # of another network nobody comes in
    refused = module("parle_hpc.train", *of(box, 4, *settings, "--model.dropout", 0.5))
    assert refused.returncode == 2
    assert our_lines(refused) == [
        f"--coupling.folder {box}: is of another experiment, with model.dropout 0.25, and here it is 0.5; give another "
        "folder"
    ]
    late = started(*TRAIN, *of(box, 3, *settings, "--algorithm.L", 10))
    printed = ended(late)
    assert "begins beside the others, after 8 of their rounds" in printed
    assert "in the mean, the others' x^a" in printed
    ended(first)
    ended(elastic)
    rounds = events(box / "runs/3", "round")
    assert [rounds[0]["round"], len(rounds)] == [8, 10]
    assert all(event["members"] >= 3 for event in events(box / "runs/0", "round")[9:])
    assert [heartbeat(box, a).done for a in range(4)] == [True, True, False, True]
    result = module("parle_hpc.gather", box)
    assert "0 after 18 rounds, 1 after 18 rounds, 3 after 18 rounds\n" in result.stdout
    told = module("parle_hpc.evaluate", box).stdout
    assert float(told.split()[2]) < 3.5, told
