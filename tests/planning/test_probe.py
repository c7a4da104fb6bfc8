"""The probe: figures that give back what was measured, and a file that the planner takes."""

import pytest
from helpers.mpi import mpirun

from parle_hpc import plan
from parle_hpc.cluster.diagnosis.probes import Reduction
from parle_hpc.planning import machine, model, probe
from parle_hpc.settings import load


def test_a_link_is_the_one_with_which_the_formula_gives_what_was_measured():
    """Two columns between three nodes, which move 4 floats each through one card."""
    true, size = model.Link(0.01, 200.0), 4 * 4 * 2

    def takes(size, link):
        return model.coupling(3, 1, size, link, link)

    found = probe.link(Reduction("", 3, takes(0.0, true), 4, takes(size, true)), 2, takes)
    assert found == pytest.approx({"latency": 0.01, "bandwidth": 200.0})


def test_one_hiccup_is_no_noise():
    steps = [1.0 + 0.01 * (i % 5) for i in range(20)]
    assert probe.spread([*steps[:-1], 9.0]) == pytest.approx(probe.spread(steps), rel=0.5)


@pytest.mark.cluster
def test_what_the_ranks_of_a_job_write_is_what_the_planner_takes(tmp_path, digits, capsys):
    """Two replicas of two ranks stand for two nodes."""
    arguments = ["--recipe", "lenet_digits", "--data.path", str(digits)]
    file = str(tmp_path / "machine.toml")
    given = ["--probe", "--machine", file, "--replicas", "2", *arguments]
    result = mpirun(4, "-m", "mpi4py", "-m", "parle_hpc.plan", *given, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"written {file}"
    found = machine.read(file)
    assert (found.measured, found.device, found.ranks_per_node) == (True, "cpu", 2)
    work = found.work["lenet_digits"]
    assert (work.parameters, work.training_samples, work.samples) == (132_220, 1437, [16, 64])
    given, rest = plan.options(["--machine", file, "--nodes", "2", *arguments])
    plan.plan(given, load(rest), rest)
    assert "sbatch --nodes=2 --ntasks-per-node=2 --time=" in capsys.readouterr().out
