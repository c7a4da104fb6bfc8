"""A task's file, from the first round to the report: killed, gone on with, validated, shown."""

import re

import pytest
from helpers.mpi import module, mpirun, our_lines, passes
from helpers.task_files import SMALL, write
from helpers.trainer import TRAIN, equal, events

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

RUN = (*SMALL, "--run.validate_every", "3", "--run.checkpoint_every", "2", "--run.checkpoint_minutes", "0.0001")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of six rounds: one whole, with workers; one that ended after three, and went on."""
    folder = tmp_path_factory.mktemp("task")
    path = write(folder)
    start = (*TRAIN, "--task.file", path, *RUN)
    passes(2, *start, "--out", folder / "whole", "--schedule.max_rounds", 6, "--data.workers", 2)
    passes(2, *start, "--out", folder / "parts", "--schedule.max_rounds", 3)
    (folder / "parts" / "reference.pt").unlink()
    passes(2, *start, "--out", folder / "parts", "--schedule.max_rounds", 6)
    return folder


def test_it_goes_on_bit_for_bit_and_workers_change_no_bit(runs):
    """Each sample has noise of its own, drawn anew for each mini-batch."""
    assert equal(runs / "whole", runs / "parts")
    last, other = (events(runs / name, "validate")[-1] for name in ("whole", "parts"))
    for key in ("val_close", "val_loss", "train_close", "train_loss", "replica_close"):
        assert last[key] == other[key]
    assert events(runs / "whole", "start")[0]["lower_is_better"] is False


def test_it_is_validated_and_shown(runs, tmp_path):
    last = events(runs / "whole", "validate")[-1]
    told = module("parle_hpc.evaluate", runs / "whole")
    assert told.returncode == 0, told.stderr
    assert re.fullmatch(r"validation close [\d.e-]+, loss [\d.e-]+, on 90 samples\n", told.stdout)
    assert float(told.stdout.split()[2].rstrip(",")) == pytest.approx(last["val_close"], abs=1e-4)
    shown = module("parle_hpc.report", runs / "whole", runs / "parts", "--out", tmp_path / "report")
    assert shown.returncode == 0, shown.stderr
    table = (tmp_path / "report" / "runs.md").read_text()
    assert "sine (close, higher is better)" in table
    assert f"{last['val_close']:.4f}" in table
    assert (tmp_path / "report" / "sine.png").exists()
    refused = module("parle_hpc.evaluate", runs / "whole", "--data.path", "x.h5")
    assert (refused.returncode, "sine.py opens its own data" in refused.stderr) == (2, True)
    refused = module("parle_hpc.analysis", runs / "whole", runs / "parts", "--out", tmp_path / "a")
    assert (refused.returncode, "give it symmetries()" in refused.stderr) == (2, True)


def test_a_changed_file_goes_on_only_where_that_is_spelt_out(runs):
    path = runs / "sine.py"
    before = path.read_text()
    path.write_text(before + "# changed\n")
    start = (*TRAIN, "--task.file", path, *RUN, "--out", runs / "parts", "--schedule.max_rounds", 8)
    refused = mpirun(2, *start)
    (line,) = our_lines(refused)
    assert refused.returncode == 2
    assert f"has changed since the checkpoints in {runs / 'parts'}" in line
    assert f"--resume {runs / 'parts'} goes on with it" in line
    told = module("parle_hpc.evaluate", runs / "whole")
    assert (told.returncode, "has changed since" in told.stderr) == (0, True)
    text = passes(4, *start, "--resume", runs / "parts")
    assert "goes on with 2 x 2 ranks after 2 x 1" in text
    path.write_text(before)


def test_every_rank_hears_of_a_file_that_is_wrong_once(tmp_path):
    path = write(tmp_path, ("return nn.functional.mse_loss", "return 2 * nn.functional.msee_loss"))
    ended = mpirun(2, *TRAIN, "--task.file", path, "--out", tmp_path / "out", *SMALL)
    (line,) = our_lines(ended)
    assert ended.returncode == 2
    assert "loss(model, batch): sine.py, line 31: AttributeError" in line
