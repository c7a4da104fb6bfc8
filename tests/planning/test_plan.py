"""The planner's command: its table from a machine's file, and one line for each mistake."""

import pytest
import tomlkit
from helpers.mpi import module, our_lines

from parle_hpc import plan
from parle_hpc.errors import BadInput
from parle_hpc.planning import machine, shapes, table, work
from parle_hpc.planning.costs import FLOAT, cost
from parle_hpc.settings import load

N = 36_479_194
LINKS = {"latency": 0.0, "bandwidth": 1e9}
WORK = {"parameters": N, "training_samples": 50_000, "samples": [32, 128], "seconds": [0.1, 0.4], "memory": [1e9, 4e9]}
TABLES = {
    "name": "a machine",
    "measured": True,
    "device": "cuda",
    "ranks_per_node": 4,
    "memory": 40e9,
    "inside": LINKS,
    "across": LINKS,
    "between": LINKS,
    "disk": 1e9,
    "copy": 1e10,
    "node_mtbf": 1e7,
    "restart": 100.0,
    "work": {"wrn_cifar10": WORK},
}
RECIPE = ["--recipe", "wrn_cifar10"]


@pytest.fixture
def file(tmp_path):
    """A function that writes a machine's file, with other figures or, where None, without."""

    def write(**figures):
        tables = {key: value for key, value in {**TABLES, **figures}.items() if value is not None}
        path = tmp_path / "machine.toml"
        path.write_text(tomlkit.dumps(tables))
        return str(path)

    return write


def planned(*arguments):
    """What the command would do with these arguments."""
    given, rest = plan.options(list(arguments))
    plan.plan(given, load(rest), rest)


def test_a_row_is_what_the_formulas_give(file):
    settings = load([*RECIPE, "--replicas", "4"])
    found = machine.read(file(across={"latency": 0.0, "bandwidth": 5e8}))
    row = cost(settings, found, found.work["wrn_cifar10"], shapes.shape_of(settings, 4, 2, 4))
    assert row.memory == pytest.approx(2e9 + FLOAT * N * (2 + 2 + 3 / 2))
    assert (row.inside, row.across) == (pytest.approx(25 * FLOAT * N), pytest.approx(2 * 3 / 4 * FLOAT * N / 2))
    # two ranks of a node, a ring; of four replicas on two nodes each sends the others a quarter, twice; shares gathered
    assert row.round.compute == pytest.approx(25 * 0.2)
    assert row.round.gradients == pytest.approx(25 * FLOAT * N / 1e9)
    assert row.round.travels == pytest.approx((1 / 1e9 + 2 / 5e8) * FLOAT * N)
    assert row.round.moves == pytest.approx(FLOAT * N / 1e9 / 2)
    assert row.round.waited == 0
    # 8 epochs of B = 390 rounds
    assert row.rounds == 8 * 390
    assert row.seconds > row.rounds * row.round.seconds
    assert row.checkpoint == 4 * 4 * FLOAT * N


def test_elastic_sgd_sends_all_of_it_by_each_rank_at_each_step(file):
    settings, found = load([*RECIPE, "--algorithm.name", "elastic_sgd"]), machine.read(file())
    row = cost(settings, found, found.work["wrn_cifar10"], shapes.shape_of(settings, 2, 4, 4))
    assert row.across == pytest.approx(25 * FLOAT * N)
    # half out, half back
    assert row.round.travels == pytest.approx(25 * 4 * FLOAT * N / 1e9)


def test_the_table_marks_the_shortest_run_of_several_replicas_and_has_its_line(file, capsys):
    planned("--machine", file(), "--nodes", "2", *RECIPE)
    told = capsys.readouterr().out
    (best,) = [line for line in told.splitlines() if line.startswith("* ")]
    assert "2 x 4" in best
    assert "sgd" in told
    assert told.splitlines()[-1].startswith("sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=")
    assert told.splitlines()[-1].endswith("slurm/wrn_cifar10.sbatch --replicas 2")
    planned("--machine", file(), "--nodes", "2", "--simulate", "--replicas=8", *RECIPE, "--algorithm.L", "50")
    told = capsys.readouterr().out
    assert told.splitlines()[-1].endswith("slurm/wrn_cifar10.sbatch --replicas 8 --algorithm.L 50")
    assert sum(line.startswith("simulated") for line in told.splitlines()) == 4


def test_one_replica_is_not_the_best_where_there_may_be_several(file):
    fast = {"latency": 0.0, "bandwidth": 1e15}
    settings, found = load(RECIPE), machine.read(file(inside=fast, between=fast))
    own, best, _ = shapes.costs(RECIPE, settings, found, found.work["wrn_cifar10"], 2, 4)
    assert min(own, key=lambda each: each.seconds).shape.n == 1
    assert best.shape.n == 2


def test_what_limits_is_said(file):
    settings = load([*RECIPE, "--replicas", "8"])
    for figures, word in (({}, "mini-batches"), ({"across": {**LINKS, "bandwidth": 1e7}}, "mean")):
        found = machine.read(file(**figures))
        row = cost(settings, found, found.work["wrn_cifar10"], shapes.shape_of(settings, 8, 1, 4))
        assert word in table.limit(row).split("limit")[0]


@pytest.mark.parametrize("name", sorted(each.name.removesuffix(".toml") for each in machine.MACHINES.iterdir()))
def test_machines_that_come_along_are_whole_and_say_that_nobody_measured_them(name):
    found = machine.read(name)
    assert not found.measured
    assert found.source
    assert found.flops


def test_a_recipe_that_nobody_probed_is_counted(file, tmp_path, monkeypatch, capsys):
    """Operations of forward and backward pass: each layer's twice as many in the second, but for the first layer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(
        "import torch\nfrom parle_hpc import Task\n"
        "class Line(Task):\n"
        "    def model(self): return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))\n"
        "    def dataset(self, part): return torch.utils.data.TensorDataset(torch.zeros(64, 8))\n"
        "    def loss(self, model, batch): return model(batch[0]).mean()\n"
        "    def scores(self, model, batch): return {'y': model(batch[0])[:, 0]}\n"
    )
    settings = load(["--task.file", "line.py", "--data.batch_size", "4"])
    found = work.work_of(settings, machine.read(file(flops=1e6)))
    assert (found.parameters, found.training_samples) == (8 * 16 + 16 + 16 + 1, 64)
    forward, backward = 2 * (8 * 16 + 16), 2 * (8 * 16 + 2 * 16)
    assert found.at(4, found.seconds) == pytest.approx(4 * (forward + backward) / 1e6)
    # the samples, and what the second layer is fed
    assert found.at(4, found.memory) >= 4 * FLOAT * (8 + 16)


def test_a_probe_keeps_what_it_could_not_measure_itself(file):
    path = file(inside=LINKS)
    line = machine.write({"disk": 7.0, "work": {"other": WORK}}, path)
    found = machine.read(path)
    assert (found.disk, found.across.bandwidth, [*found.work]) == (7.0, 1e9, ["wrn_cifar10", "other"])
    assert line == f"written {path}"


LACKS = "lacks {}; the probe measures it on two nodes or more, or type it in"


@pytest.mark.parametrize(
    ("figures", "arguments", "line"),
    [
        ({"across": None}, [], LACKS.format("across")),
        ({"between": {"latency": 1.0}}, [], LACKS.format("between.bandwidth")),
        ({"disk": -1.0}, [], "disk -1.0: must be greater than 0"),
        ({"colour": "red"}, [], "colour is no figure of a machine; leave it out"),
        ({"work": {"wrn_cifar10": {**WORK, "samples": [8, 4]}}}, [], "samples must be two sizes"),
        ({"work": {}}, [], "lacks work.wrn_cifar10"),
        ({}, ["--algorithm.inside", "workers"], "--algorithm.inside workers: the planner has no formula for it"),
        ({}, ["--replicas", "3"], "--replicas 3 does not divide 8 ranks"),
        ({"ranks_per_node": 3}, ["--replicas", "2"], "2 replicas of 3 ranks do not divide a mini-batch of 128"),
        ({"memory": 1e9}, [], "the model does not fit: 1.14 GB a rank with 1 replicas of 8 ranks"),
        ({}, ["--algorithm.name", "sgd", "--data.batch_size", "12"], "do not divide a mini-batch of 12"),
    ],
)
def test_a_mistake_is_answered_by_one_line(file, figures, arguments, line):
    with pytest.raises(BadInput) as error:
        planned("--machine", file(**figures), "--nodes", "2", *RECIPE, *arguments)
    assert line in str(error.value)


def test_the_command_ends_with_status_2(tmp_path):
    (tmp_path / "bad.toml").write_text("no TOML")
    for given, line in (
        (["--machine", "permutter"], "--machine permutter: no such file or machine; did you mean perlmutter?"),
        (["--machine", tmp_path / "bad.toml"], f"--machine {tmp_path}/bad.toml is not a TOML file"),
        (["--nodes", "0"], "argument --nodes: '0': must be a whole number of at least 1"),
    ):
        result = module("parle_hpc.plan", *given)
        assert result.returncode == 2
        (told,) = our_lines(result)
        assert told.startswith(line)
