"""A Session around a loop of one's own: whatever ends it, the same command goes on, and every end has its status."""

import json
import shutil

import numpy as np
import pytest
from helpers.mpi import mpirun, our_lines, pass_in_turn, passes
from helpers.trainer import events

from parle_hpc.checkpoints.files import folders, read_manifest
from parle_hpc.errors import BAD_INPUT, DIVERGED, SAVED
from parle_hpc.training.saving import is_due

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def held(result, ranks=2):
    """What each rank held at the end."""
    return [dict(np.load(f"{result}.{rank}.npz")) for rank in range(ranks)]


def same(one, other):
    return all(np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


LOOP = ("-m", "programs.session_loop")
# where it ends before its time, in which round; the status, and the line
ENDS = {
    "waits": (3, SAVED, "saved after round 5/7 on SIGUSR1; the same command goes on"),
    "dies": (5, 137, None),
    "raises": (4, 1, None),
    "leaves": (4, 0, None),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of `whole` and of each of ENDS, which the same command has gone on with; how they ended before.

    Those that go on, and what nobody ended, in one start.
    """
    folder = tmp_path_factory.mktemp("session")
    commands = {way: (*LOOP, folder / way / "run", folder / way / "result") for way in ("whole", *ENDS)}
    for way in commands:
        (folder / way).mkdir()
    ended = {way: mpirun(2, *commands[way], way, at) for way, (at, *_) in ENDS.items()}
    printed = pass_in_turn(2, *((*command, "whole") for command in commands.values()))
    return folder, ended, dict(zip(commands, printed, strict=True))


@pytest.fixture(scope="module")
def whole(runs):
    return runs[0] / "whole"


def test_it_tells_what_a_run_tells(whole):
    run = whole / "run"
    assert [event["step"] for event in events(run, "validate")] == [8, 16, 24]
    assert {(event["val_loss"], event["val_other"]) for event in events(run, "validate")} == {(7, 1), (15, 1), (23, 1)}
    assert events(run, "start")[0]["ranks"] == 2
    # every second round, two of which stay beside the best, and the last whole one
    scores = {folder.name: read_manifest(folder)["score"] for folder in folders(run)}
    assert scores == {"round-000007": None, "round-000006": 23.0, "round-000002": 7.0}
    assert not (run / "running.json").exists()


@pytest.mark.parametrize("way", ENDS)
def test_whatever_ends_it_the_same_command_goes_on(runs, way):
    folder, ended, printed = runs
    _, status, said = ENDS[way]
    assert ended[way].returncode == status, ended[way].stdout + ended[way].stderr
    if said:
        assert our_lines(ended[way]) == [said]
    if way == "raises":
        assert "KeyError: 'only here'" in ended[way].stderr
    assert "goes on after round" in printed[way]
    assert same(held(folder / way / "result"), held(folder / "whole" / "result"))


def test_a_run_that_is_complete_does_only_what_no_round_has_anew(whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    passes(2, *LOOP, tmp_path / "run", tmp_path / "result", "whole")
    assert same(held(tmp_path / "result"), held(whole / "result"))


def test_replicas_of_more_ranks_go_on_with_it(whole, tmp_path):
    mpirun(2, *LOOP, tmp_path / "run", tmp_path / "result", "leaves", 4)
    text = passes(4, *LOOP, tmp_path / "run", tmp_path / "result", "whole")
    assert "goes on with 2 x 2 ranks after 2 x 1; dropout is drawn anew" in text
    a, b, c, d = held(tmp_path / "result", 4)
    assert np.array_equal(a["live"], b["live"])
    assert np.array_equal(c["live"], d["live"])
    assert a["lr"] == held(whole / "result")[0]["lr"]


@pytest.mark.parametrize(
    ("way", "status", "line"),
    [
        ("nan", DIVERGED, "the loss became NaN or infinite in round 3, step 9, replica 0, rank 0 on"),
        ("steps", BAD_INPUT, "after round 2 the number of steps of the optimiser is 8 on one rank and 9 on another"),
        ("torch", BAD_INPUT, "a Session's optimizer must be one of parle_hpc, such as Parle, not SGD"),
        (
            "unkept",
            BAD_INPUT,
            "keep: what thing.state_dict() gives cannot be saved so that torch.load(weights_only=True)",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, way, status, line):
    ended = mpirun(2, *LOOP, tmp_path / "run", tmp_path / "result", way)
    assert ended.returncode == status, ended.stdout + ended.stderr
    (said,) = our_lines(ended)
    assert line in said


def test_a_checkpoint_of_another_network_or_that_kept_other_things_is_refused(whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    newest = folders(tmp_path / "run")[0]
    text = (newest / "manifest.json").read_text()
    assert json.loads(text)["n"] == 2
    program = (
        "import torch\n"
        "from parle_hpc import Parle, Session, Topology\n"
        "t = Topology.split(replicas=2)\n"
        "model = torch.nn.Linear(3, {width})\n"
        "for p in model.parameters(): p.data.zero_()\n"
        "o = Parle(model.parameters(), lr=0.1, L=4, batches_per_epoch=10, comm=t.cross)\n"
        f"Session(out={str(tmp_path / 'run')!r}, topology=t, model=model, optimizer=o)\n"
    )
    ended = mpirun(2, "-c", program.format(width=2))
    assert ended.returncode == BAD_INPUT, ended.stderr
    assert "was saved from another network" in our_lines(ended)[0]


def test_checkpoints_come_early_and_then_seldom():
    assert [done for done in range(1, 400) if is_due(done, 100)] == [5, 10, 20, 40, 80, 100, 200, 300]
    assert [done for done in range(1, 13) if is_due(done, 4)] == [4, 8, 12]
