"""The mailbox: what members leave is read whole or not at all, ages need no clock, and who is wrong is left out."""

import errno
import json
import os
import threading
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from helpers.problems import problem
from helpers.trajectories import trajectory

from parle_hpc import Parle
from parle_hpc.coupling import mailbox, posting
from parle_hpc.coupling.mailbox import Member, Unreadable, agree, read
from parle_hpc.coupling.others import Others
from parle_hpc.coupling.posting import Membership
from parle_hpc.coupling.reference import tree_sum
from parle_hpc.errors import BadInput

N = 1001
LIKE = np.empty(N, np.float32)
FACTS = {"model.name": "lenet", "the number of weights": N}


def vector(*seed):
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


@pytest.fixture
def box(tmp_path):
    agree(tmp_path / "box", FACTS, "")
    return tmp_path / "box"


@pytest.fixture
def member(box):
    """A function that makes a member, which has left x^a after so many couplings; all end after the test."""
    made = []

    def make(number, round=0, **more):
        made.append(Member(box, number, **more))
        made[-1].post(round, vector(number, round), 0, round)
        return made[-1]

    yield make
    for one in made:
        one.close()


def others(box, said=None, **options):
    options = {"max_age": 3, "max_seconds": 1e6, **options}
    return Others(box, 0, LIKE, say=(said if said is not None else []).append, **options)


def test_what_is_left_is_read_and_the_last_two_stay(box, member):
    one = member(1)
    for round in range(1, 5):
        one.post(round, vector(1, round), 0, round)
    assert mailbox.heartbeat(box, 1)._replace(counter=0) == mailbox.Heartbeat(0, [3, 4], 0, 1.0, False, {})
    assert sorted(path.name for path in (box / "members/1").glob("x-*")) == ["x-000003.h5", "x-000004.h5"]
    assert np.array_equal(read(box, 1, 4, LIKE), vector(1, 4))


def test_from_the_round_that_may_be_wanted_again_all_stay(box, member):
    one = member(1)
    for round in range(1, 6):
        one.post(round, vector(1, round), 0, 2)
    assert mailbox.heartbeat(box, 1).rounds == [2, 3, 4, 5]


def test_who_goes_on_from_an_earlier_round_moves_its_counter_on(box, member):
    one = member(1, 7)
    before = mailbox.heartbeat(box, 1)
    one.close()
    again = member(1, 5)
    found = mailbox.heartbeat(box, 1)
    assert (found.counter, found.rounds) == (before.counter + 1, [5])
    # what that life has left of later rounds is not this one's
    assert [path.name for path in (box / "members/1").glob("x-*")] == ["x-000005.h5"]
    again.close(done=True)
    assert mailbox.heartbeat(box, 1).done


def test_what_an_earlier_life_has_left_may_be_wanted_again(box, member):
    """Of two that wait for one another both were killed, and the other one goes on from an earlier round."""
    one = member(1)
    for round in range(1, 9):
        one.post(round, vector(1, round), 0, 5)
    one.close()
    again = Member(box, 1)
    again.post(7, vector(1, 7), 7, 5)
    again.close()
    assert mailbox.heartbeat(box, 1).rounds == [5, 6, 7]
    known = others(box, wait_for=2)
    assert known.look(5)
    assert known.mean(torch.from_numpy(vector(0)), 1.0, 5) is not None


def test_who_waits_for_a_value_that_cannot_be_read_yet_waits_on(box, member):
    member(1, 3)
    path, said = mailbox.x_file(box, 1, 3), []
    content = path.read_bytes()
    path.unlink()
    known, own = others(box, said, wait_for=2), torch.from_numpy(vector(0))
    for _ in range(2):
        assert not known.look(3)
        assert known.mean(own, 1.0, 3) is None
    path.write_bytes(content)
    assert known.look(3)
    assert torch.equal(known.mean(own, 1.0, 3).rest, (own + torch.from_numpy(vector(1, 3))) / 2)
    (line,) = said
    assert line.endswith("; it is waited for")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(vector(1, 1).tobytes()) + 100] ^= 1
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_another(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(N + 1, np.float32)
        file.attrs["blake2b"] = "0"


def not_finite(path):
    x = vector(9)
    x[17] = np.inf
    with h5py.File(path, "w") as file:
        file["x"] = x
        file.attrs["blake2b"] = mailbox.digest(x)


def swapped(path):
    """A sound file with other numbers than it says."""
    with h5py.File(path, "r+") as file:
        file["x"][...] = vector(8)


DAMAGES = [flipped, cut_off, of_another, not_finite, swapped, os.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_taken_and_the_one_before_is(box, member, damage):
    one, said = member(1, 0), []
    one.post(1, vector(1, 1), 0, 1)
    damage(mailbox.x_file(box, 1, 1))
    with pytest.raises(Unreadable):
        read(box, 1, 1, LIKE)
    known = others(box, said)
    own = torch.from_numpy(vector(0))
    for round in range(3):
        assert known.look(round)
        mean = known.mean(own, 1.0, round)
        assert torch.equal(mean.rest, torch.from_numpy(vector(1, 0)) / 2)
    (line,) = said
    assert line.startswith("member 1: ")
    assert "x-000001.h5" in line
    # and then it is well again
    one.post(2, vector(1, 2), 0, 2)
    known.look(3)
    assert torch.equal(known.mean(own, 1.0, 3).rest, torch.from_numpy(vector(1, 2)) / 2)
    assert len(said) == 1


def test_the_mean_is_of_its_own_as_it_is_and_of_others_by_weight(box, member):
    member(1, weight=3.0)
    member(2)
    known, own = others(box), torch.from_numpy(vector(0))
    known.look(0)
    mean = known.mean(own, 1.0, 0)
    right = (own + 3 * torch.from_numpy(vector(1, 0)) + torch.from_numpy(vector(2, 0))) / 5
    torch.testing.assert_close(mean.rest + mean.part * own, right)
    assert mean.part == 1 / 5
    alone = Others(box / "none", 0, LIKE, max_age=3, max_seconds=1.0).mean(own, 1.0, 0)
    assert torch.equal(alone.rest + alone.part * own, own)


def test_ages_are_told_by_counters_and_not_by_clocks(box, member):
    one, two, said = member(1), member(2), []
    known, own = others(box, said), torch.from_numpy(vector(0))
    ages = []
    for round in range(6):
        two.post(round, vector(2, round), 0, round)
        # the clock of its node is an hour late
        for path in (box / "members/2").iterdir():
            os.utime(path, (0, path.stat().st_mtime - 3600))
        known.look(round)
        ages.append(known.mean(own, 1.0, round).ages)
    # the first one has been silent since round 0, and counts for 3 rounds
    assert ages == [[0, 0], [1, 0], [2, 0], [3, 0], [0], [0]]
    assert said == ["member 1: nothing new for 4 rounds here, 0 s; it counts no more"]
    one.post(1, vector(1, 1), 0, 1)
    known.look(6)
    assert known.mean(own, 1.0, 6).ages == [0, 1]


def test_who_has_done_its_rounds_counts_as_long_as_any_other(box, member):
    one, said = member(1), []
    one.close(done=True)
    known, own = others(box, said), torch.from_numpy(vector(0))
    counts = []
    for round in range(5):
        known.look(round)
        counts.append(len(known.mean(own, 1.0, round).ages))
    assert counts == [1, 1, 1, 1, 0]
    assert said == ["member 1: has done its rounds; it counts no more"]


def test_seconds_count_too(box, member):
    member(1)
    known = others(box, max_seconds=0.0)
    known.look(0)
    assert known.mean(torch.from_numpy(vector(0)), 1.0, 0).ages == []


def test_who_is_far_from_all_is_left_out_and_named_once(box, member):
    said, own = [], torch.from_numpy(vector(0))
    for number, far in ((1, 0.01), (2, 0.01), (3, 100.0)):
        one = member(number)
        one.post(1, (vector(0) + far * vector(number)).astype(np.float32), 0, 1)
    known = others(box, said)
    for round in range(2):
        known.look(round)
        assert len(known.mean(own, 1.0, round).ages) == 2
    (line,) = said
    assert line.startswith("member 3: is ")


def test_a_listing_that_is_late_and_a_folder_that_is_gone(box, member, monkeypatch):
    """Of a network file system: a newcomer counts once the listing has it, and nothing ends."""
    member(1)
    member(2)
    said, own = [], torch.from_numpy(vector(0))
    known, listed = others(box, said), mailbox.members
    monkeypatch.setattr(mailbox, "members", lambda folder: [1])
    known.look(0)
    assert len(known.mean(own, 1.0, 0).ages) == 1
    monkeypatch.setattr(mailbox, "members", listed)
    known.look(0)
    assert len(known.mean(own, 1.0, 0).ages) == 2

    def gone(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(mailbox, "members", gone)
    for round in range(3):
        known.look(round)
        assert len(known.mean(own, 1.0, round).ages) == 2
    assert said == [f"{box} cannot be read (Stale file handle): this member goes on by itself"]


def test_a_heartbeat_that_is_half_there_is_none(box, member):
    member(1)
    path = box / "members/1/heartbeat.json"
    for text in ("", path.read_text()[:20], "[]", '{"counter": 1}'):
        path.write_text(text)
        assert mailbox.heartbeat(box, 1) is None


def test_another_experiment_is_refused_with_both_values(box):
    agree(box, FACTS, "")
    with pytest.raises(BadInput, match=r"another experiment, with model\.name lenet, and here it is allcnn"):
        agree(box, {**FACTS, "model.name": "allcnn"}, "")
    (box / "experiment.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        agree(box, FACTS, "")


def test_of_many_who_come_first_one_writes(tmp_path):
    found, refused, barrier = [], [], threading.Barrier(8)

    def come(number):
        barrier.wait()
        try:
            agree(tmp_path / "box", {"the number": number}, f"{number}")
            found.append(number)
        except BadInput as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert all("another experiment" in line for line in refused)
    assert found == [json.loads((tmp_path / "box/experiment.json").read_text())["the number"]]
    assert sorted(os.listdir(tmp_path / "box")) == ["config.toml", "experiment.json", "members"]


@pytest.mark.parametrize("part", [".", "members"])
def test_nobody_else_may_write(box, part):
    assert agree(box, FACTS, "") == box.owner()
    (box / part).chmod(0o775)
    if part == "members":
        assert agree(box, FACTS, "") == f"{box.owner()} and the group {box.group()}"
    (box / part).chmod(0o777)
    with pytest.raises(BadInput, match=r"everybody may write to it; chmod o-w"):
        agree(box, FACTS, "")


def test_a_member_is_one_process(box, member):
    member(1)
    with pytest.raises(BadInput, match=r"--coupling\.member 1: process \d+ on .* is it already"):
        Member(box, 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        agree(tmp_path / "file/box", FACTS, "")
    with pytest.raises(BadInput, match="cannot be written"):
        Member(tmp_path / "file", 0)


@pytest.mark.parametrize("n", range(1, 9))
def test_a_sum_is_in_the_order_of_a_binomial_tree(n):
    parts = [torch.from_numpy(vector(a)) for a in range(n)]

    def tree(low, high):
        """Rank `low` has summed what is below `high`, as ranks at powers of two from it hand theirs on."""
        total = parts[low]
        step = 1
        while low + step < high:
            total = total + tree(low + step, min(low + 2 * step, high))
            step *= 2
        return total

    assert torch.equal(tree_sum(parts), tree(0, n))


@pytest.mark.parametrize(("name", "n"), [("quadratic", 1), ("quadratic", 2), ("rosenbrock", 3), ("lenet", 2)])
def test_members_that_wait_for_one_another_are_the_replicas_of_mpi(tmp_path, name, n):
    """Each state of each replica, to the bit."""
    agree(tmp_path, FACTS, "")

    def over(comm):
        return {"comm": comm}

    def by_mailbox(comm):
        membership = Membership(Member(tmp_path, comm.Get_rank()), wait_for=n).__enter__()
        open_ones.append(membership)
        return {"mailbox": membership}

    open_ones, found = [], []
    for way in (over, by_mailbox):

        def make(params, comm, way=way):
            return Parle(params, lr=0.1, L=3, batches_per_epoch=2, **way(comm))

        found.append(trajectory(make, problem(name), n, 13, 6))
    for one in open_ones:
        one.__exit__(None, None, None)
    for (path, newest, right), (other, newest_too, optimizer) in zip(*found, strict=True):
        assert np.array_equal(path, other)
        assert np.array_equal(newest, newest_too)
        assert torch.equal(right.x, optimizer.x)
    beats = [mailbox.heartbeat(tmp_path, a) for a in range(n)]
    assert all(beat.done and beat.rounds[-1] == 4 for beat in beats)


def test_what_cannot_be_written_is_tried_again_and_said_once(box, monkeypatch, capsys):
    """The disk is full for a while; training goes on with what others leave."""
    monkeypatch.setattr(posting, "AGAIN", 0.01)
    monkeypatch.setattr(posting, "LOOK", 0.01)
    one, full, tried = Member(box, 0), threading.Event(), threading.Event()
    full.set()
    write = mailbox.write_whole

    def no_room(path, content):
        if full.is_set():
            tried.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(mailbox, "write_whole", no_room)
    y = torch.nn.Parameter(torch.ones(3))
    with Membership(one) as membership:
        optimizer = Parle([y], lr=0.1, L=2, batches_per_epoch=2, mailbox=membership)
        for step in range(8):
            y.grad = y.detach().clone()
            optimizer.step()
            if step == 3:
                assert tried.wait(60)
                full.clear()
    assert mailbox.heartbeat(box, 0).rounds[-1] == 4
    assert len(mailbox.heartbeat(box, 0).rounds) <= 2
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_round_of_elastic_sgd_is_left_once_and_its_own_counts_as_it_is(box, member, monkeypatch):
    """(7b) with the mean of x^a now and what the others have left."""
    from parle_hpc import ElasticSGD

    other = np.array([3.0, -1.0], np.float32)
    with Membership(Member(box, 0)) as membership:
        one = Member(box, 1)
        one.post(0, other, 0, 0)
        y = torch.nn.Parameter(torch.ones(2))
        optimizer = ElasticSGD([y], lr=0.1, batches_per_epoch=10, mailbox=membership)
        optimizer.state_dict()  # begins
        clerk = membership._clerk
        clerk.settle()
        while clerk.newest() is None:
            pass
        for _ in range(30):
            xa, x = y.detach().clone(), optimizer.x.clone()
            y.grad = torch.zeros(2)
            optimizer.step()
            mean = (xa + torch.from_numpy(other)) / 2
            torch.testing.assert_close(optimizer.x, x + 0.1 * (mean - x))
        clerk.settle()
        assert mailbox.heartbeat(box, 0).rounds == [0, 1]
        one.close()
    assert optimizer.coupling_news["members"] == 2


def test_rounds_of_a_heartbeat_grow(box, member):
    one = member(1)
    for round in (3, 2, 9, 4):
        one.post(round, vector(1, round), 0, 0)
        rounds = mailbox.heartbeat(box, 1).rounds
        assert all(a < b for a, b in pairwise(rounds))
        assert rounds[-1] == round
