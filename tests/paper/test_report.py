"""Reports: what runs say becomes means, tables and figures, beside the paper's numbers."""

import json
import re
import sys

import numpy as np
import pytest
from helpers.mpi import module, pass_in_turn
from helpers.records import write_run
from helpers.trainer import TRAIN

from parle_hpc import analysis
from parle_hpc.errors import BadInput
from parle_hpc.paper import numbers, pages, plots, tables
from parle_hpc.paper.records import read_groups
from parle_hpc.paper.study import study

START = '{"event": "start", "seconds": 0, "round": 0, "step": 0, "passes": 0}\n'


@pytest.fixture
def runs(tmp_path):
    """MNIST: Parle of 3 and of 6, three seeds and one, and SGD, two seeds and one that did not end."""
    parle = ["--recipe", "lenet_mnist", "--replicas"]
    sgd = ["--recipe", "lenet_mnist", "--algorithm.name", "sgd"]
    finals = (0.5, 0.6, 0.4)
    folders = [write_run(tmp_path / f"p{s}", [2, 1, e], *parle, "3", seed=s) for s, e in enumerate(finals)]
    folders.append(write_run(tmp_path / "six", [2, 1, 0.45], *parle, "6"))
    folders += [write_run(tmp_path / f"s{s}", [3, 1.5, 0.7 + s / 10], *sgd, seed=s) for s in range(2)]
    folders.append(write_run(tmp_path / "s2", [3, 1.5], *sgd, seed=2, finished=False))
    return folders


def test_runs_that_differ_by_seed_are_one_group(runs):
    groups = {group.label: group for group in read_groups(runs[::-1])}
    assert list(groups) == ["Parle, n = 3", "Parle, n = 6", "SGD"]
    parle = groups["Parle, n = 3"]
    assert [r.settings.run.seed for r in parle.records] == [0, 1, 2]
    across, mean, deviation = parle.curve("val", "passes")
    assert across.tolist() == [0.25, 0.5, 0.75]
    assert mean == pytest.approx([2, 1, 0.5])
    assert deviation == pytest.approx([0, 0, 0.1])
    minutes, _, _ = groups["SGD"].curve("train", "seconds")
    assert minutes == pytest.approx([2 / 60, 4 / 60])  # what all of them have
    assert len(groups["SGD"].finished) == 2
    # 0.01 s of coupling beside 1 s of mini-batches
    assert parle.records[0].coupling == pytest.approx(1, rel=1e-3)
    assert parle.records[0].waited == pytest.approx(0.5, rel=1e-3)


def test_rounds_of_unequal_lengths_are_timed_by_all_their_mini_batches(tmp_path):
    given = ["--recipe", "lenet_mnist", "--replicas", "2", "--algorithm.pace", "time"]
    folder = write_run(tmp_path / "paced", [2, 1], *given)
    path = folder / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "round":
            # as many more in the same time
            event |= {"mini_batches": [50, 13], "samples_per_second": event["samples_per_second"] * 63 / 50}
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    (group,) = read_groups([folder])
    assert group.records[0].coupling == pytest.approx(1, rel=1e-3)


def test_groups_that_would_have_one_name_say_what_differs(tmp_path):
    folders = [
        write_run(tmp_path / g, [1], "--recipe", "lenet_mnist", "--algorithm.gamma0", g, "--data.path", f"{g}.h5")
        for g in ("10", "100")
    ]
    assert [g.label for g in read_groups(folders)] == ["Parle, n = 1, gamma0 = 10.0", "Parle, n = 1, gamma0 = 100.0"]


def test_how_a_run_is_saved_and_watched_makes_no_other_kind_of_it(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), [2.0], "--recipe", "lenet_mnist", *given, seed=seed)
        for seed, given in enumerate([(), ("--run.keep", "9"), ("--run.patience", "99"), ("--run.trace", "true")])
    ]
    (group,) = read_groups(folders)
    assert len(group.records) == 4


def test_the_page_holds_table_and_curves_and_needs_no_network(runs, tmp_path):
    path = pages.write(runs, tmp_path / "out")
    page = path.read_text().replace("&nbsp;", " ")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 1
    for text in ("0.50 ± 0.10", "0.44 ± 0.01", "0.75 ± 0.07", "LeNet (MNIST, n = 6)", "(+ 1 unfinished)", "0.52"):
        assert text in page, text
    files = {p.name for p in (tmp_path / "out").iterdir()}
    figures, names = {"lenet-mnist.pdf", "lenet-mnist.png"}, ("runs", "table1", "lenet-mnist-equal")
    tables = {f"{name}.{kind}" for name in names for kind in ("md", "tex")}
    assert files == {"index.html"} | figures | tables
    assert (tmp_path / "out" / "lenet-mnist.pdf").read_bytes().startswith(b"%PDF")
    table = (tmp_path / "out" / "table1.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[4:]]
    assert [row[0][:30] for row in rows] == [
        "paper: LeNet (MNIST, n = 6)",
        "here: LeNet on MNIST, n = 3, 7",
        "here: LeNet on MNIST, n = 6, 7",
    ]
    assert rows[1][1] == "0.50 ± 0.10"
    assert rows[2][1] == "0.45"
    # data-parallel SGD is what both are compared with
    assert rows[1][7] == rows[2][7] == "0.75 ± 0.07"
    latex = (tmp_path / "out" / "table1.tex").read_text()
    assert latex.startswith(r"\begin{tabular}")
    assert r"\toprule" in latex
    assert r"error \%" in latex
    assert latex.count(r"\\") == 4


def test_at_equal_cost_each_has_what_it_had_by_then(tmp_path):
    """3 replicas make thrice the gradients in a mini-batch of each, and send a third here."""
    parle, sgd = ["--recipe", "lenet_mnist", "--replicas", "3"], ["--recipe", "lenet_mnist", "--algorithm.name", "sgd"]
    folders = [write_run(tmp_path / f"p{seed}", [5, 4, 3, 2 + seed], *parle, seed=seed) for seed in range(2)]
    folders += [write_run(tmp_path / "s", [9, 8, 7, 6, 5, 4, 3], *sgd)]
    headers, rows = tables.at_equal_cost(read_groups(folders))
    assert headers[2] == "at 101 mini-batches a replica"
    assert headers[3:] == ["at 0.02 million gradients", "at 5.3 MB sent a rank", "at 0.1 min"]
    assert rows == [
        ["Parle, n = 3", "2.50 ± 0.71", "2.50 ± 0.71", "4.00 ± 0.00", "2.50 ± 0.71", "2.50 ± 0.71"],
        ["SGD", "3.00", "6.00", "3.00", "9.00", "6.00"],
    ]


def test_the_page_says_how_many_runs_and_which_seeds(runs):
    said = [tables.runs_and_seeds(read_groups(folders)) for folders in (runs[:1], runs[:3], [runs[0], runs[3]])]
    assert said == ["1 run, seed 0", "3 runs, seeds 0, 1, 2", "2 runs, seed 0"]


def test_numbers_on_the_page_have_their_decimal_points_below_each_other():
    column = ["3.60 ± 0.10", "10.96 ± 0.17", "", "see all runs", "1,000"]
    indents = [float(re.search(r"text-indent: ([\d.]+)ch", cell)[1]) for cell in pages.cells(column)]
    assert indents == [3.5, 2.5, 4.5, 4.5, 0]
    assert pages.cells(["Parle, n = 3"]) == ["<td>Parle, n&nbsp;=&nbsp;3</td>"]


def test_a_figures_legend_lies_within_it(runs):
    groups = read_groups(runs)
    for group in groups:
        group.label = "Parle, n = 3, gamma0 = 1000.0, rho0 = 10.0"
    figure = plots.curves(groups * 2, "LeNet on MNIST")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    frame = legend.get_window_extent()
    assert figure.bbox.x0 <= frame.x0 < frame.x1 <= figure.bbox.x1


def test_table_2_sets_each_part_of_the_data_beside_the_papers(tmp_path):
    small = ["--model.name", "lenet"]
    folders = [
        write_run(tmp_path / f"{recipe}-{a}", [40, e], "--recipe", recipe, "--algorithm.name", a, *small)
        for recipe, a, e in (
            ("allcnn_cifar10", "sgd", 30),
            ("allcnn_cifar10_split3", "sgd", 35),
            ("allcnn_cifar10_split3", "parle", 33),
            # for which that table has no column
            ("allcnn_cifar10_split6", "entropy_sgd", 32),
        )
    ]
    headers, rows = tables.beside_the_paper(read_groups(folders), numbers.TABLE_2, tables.row_of_table_2)
    assert headers[1:] == [f"{a} {w}" for a in ("Parle", "Elastic-SGD", "SGD") for w in ("error %", "min")]
    found = {row[0]: row[1:] for row in rows}
    assert found["paper: All-CNN (n = 3, 50 % data)"] == ["5.89 ± 0.01", "34", "6.51 ± 0.09", "36", "7.86 ± 0.12", "20"]
    (half,) = (row for name, row in found.items() if name.startswith("here") and "50 %" in name)
    assert (half[0], half[2], half[4]) == ("33.00", "", "35.00")
    assert "paper: All-CNN (n = 6, 25 % data)" not in found


def test_the_effect_of_a_setting_is_a_figure_of_its_own(tmp_path):
    folders = []
    for name, values in (("gamma0", (10, 100, 1000)), ("rho0", (0.1, 10))):
        for value in values:
            given = ["--recipe", "lenet_mnist", f"--algorithm.{name}", str(value)]
            folders.append(write_run(tmp_path / f"{name}{value}", [1, value / 1000], *given))
    studied = tables.varied(read_groups(folders))
    assert [(name, values) for name, values, _ in studied] == [
        ("algorithm.gamma0", [10, 100, 1000]),
        ("algorithm.rho0", [0.1, 1, 10]),
    ]
    pages.write(folders, tmp_path / "out")
    assert {"lenet-mnist-gamma0.png", "lenet-mnist-rho0.pdf"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_published_numbers_are_the_papers():
    assert numbers.TABLE_1["cifar10"][1]["parle"] == (3.24, 0.1, 400)
    assert numbers.TABLE_1["svhn"][1]["elastic_sgd"].error == 1.57
    assert numbers.TABLE_2[0.25][1]["sgd"] == (10.96, 0.17, 10)
    assert tables.published(numbers.TABLE_1["mnist"][1]["sgd"]) == "0.5 ± 0.01"
    assert tables.measured(np.array([1.0, 2.0, 3.0])) == "2.00 ± 1.00"


def changed(key, value):
    """Give a run's first event that has the key another value."""

    def change(folder):
        path = folder / "metrics.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()]
        next(event for event in events if key in event)[key] = value
        path.write_text("".join(json.dumps(event) + "\n" for event in events))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "metrics.jsonl").unlink(), "holds no run: metrics.jsonl is missing"),
        (lambda f: (f / "config.toml").unlink(), "holds no run: config.toml is missing"),
        (lambda f: (f / "metrics.jsonl").write_text(START), "has not been validated yet"),
        (lambda f: (f / "metrics.jsonl").write_text("[1, 2]\n{"), "not what a run writes"),
        (lambda f: (f / "metrics.jsonl").write_text("[" * 20_000), "line 1, is not what a run writes"),
        (changed("samples_per_second", 0), "line 2, .*samples_per_second: .*greater than 0"),
        (changed("val_error", "x"), "line 3, .*val_error: .*number"),
        (changed("passes", float("nan")), "passes: .*finite"),
        (lambda f: (f / "metrics.jsonl").write_text(""), "has not been validated yet"),
    ],
)
def test_a_folder_that_is_no_run_is_named(runs, change, words):
    change(runs[1])
    with pytest.raises(BadInput, match=words) as error:
        read_groups(runs)
    assert str(runs[1]) in str(error.value)


def test_a_mistake_on_the_command_line_gets_one_line(tmp_path):
    for name, arguments in (("report", [tmp_path / "no", "--out", tmp_path]), ("analysis", [tmp_path / "no"])):
        result = module(f"parle_hpc.{name}", *arguments)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert str(tmp_path / "no") in result.stderr


@pytest.mark.cluster
def test_section_1_2_from_real_runs(digits, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / f"seed{seed}" for seed in range(2)]
    short = ["--data.path", digits, "--schedule.max_rounds", 2, "--algorithm.L", 10, "--run.save_replicas", "true"]
    pass_in_turn(2, *((*TRAIN, *short, "--out", folder, "--run.seed", i) for i, folder in enumerate(folders)))
    for folder in folders:
        assert {p.name for p in (folder / "replicas").iterdir()} == {"0.pt", "1.pt"}
    given = [*folders, "--replicas", folders[0], "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["analysis", *map(str, given)])
    analysis.main()
    told = dict(re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()[:-1])
    percent = {name: float(value.split()[0]) for name, value in told.items()}
    # two networks are far apart, two replicas are not
    assert percent["independent: overlap, mean over layers"] < percent["independent: overlap after alignment"]
    assert percent["replicas of Parle: overlap, mean over layers"] > 0.9
    assert percent["independent: average of the weights"] > percent["replicas of Parle: average of the weights"]
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {"figure1.png", "figure1.pdf", "index.html", "section12.md", "section12.tex"}
    with pytest.raises(BadInput, match="two runs or more"):
        study([folders[0], folders[0]])
    weights = folders[1] / "reference.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = module("parle_hpc.analysis", *folders, "--out", tmp_path / "out")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"{weights} is damaged" in result.stderr
