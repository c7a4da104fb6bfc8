"""Settings from recipe and command line, and the one line that answers a mistake."""

import re

import pytest

from parle_hpc.errors import BadInput
from parle_hpc.settings import default_replicas, load, option_names, settle, write


def refused(*arguments):
    with pytest.raises(BadInput) as error:
        load(list(arguments))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_without_arguments_it_is_the_digits():
    settings = load([])
    assert (settings.recipe, settings.data.name, settings.algorithm.name) == ("lenet_digits", "digits", "parle")
    assert (settings.algorithm.L, settings.algorithm.alpha) == (25, 0.75)
    assert (settings.algorithm.gamma0, settings.algorithm.rho0) == (100.0, 1.0)


def test_the_command_line_beats_the_recipe_and_the_algorithms_own_table():
    assert load(["--recipe", "lenet_mnist"]).schedule.drops == [2]
    assert load(["--recipe", "lenet_mnist", "--algorithm.name", "sgd"]).schedule.drops == [30, 60, 90]
    given = ["--recipe", "lenet_mnist", "--algorithm.name=sgd", "--schedule.drops", "1,2.5"]
    assert load(given).schedule.drops == [1, 2.5]


def test_settings_written_are_the_settings_read(tmp_path):
    settings = load(["--algorithm.rho0", "inf", "--schedule.drops", "2,4", "--replicas", "2"])
    write(settings, tmp_path / "config.toml")
    again = load(["--recipe", str(tmp_path / "config.toml")])
    assert again.model_dump(exclude={"recipe"}) == settings.model_dump(exclude={"recipe"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "lenet_digit"], ["lenet_digit", "unknown recipe", "lenet_digits"]),
        (["--recipe", "missing.toml"], ["missing.toml", "no such file"]),
        (["--data.batchsize", "3"], ["--data.batchsize", "unknown setting", "data.batch_size"]),
        (["mine.toml"], ["unrecognized arguments: mine.toml", "did you mean --recipe mine.toml?"]),
        (["my_task.py"], ["did you mean --task.file my_task.py?"]),
        (["--batch_size", "3"], ["--batch_size", "data.batch_size"]),
        (["--data.batch_size", "0"], ["--data.batch_size 0", "greater than or equal to 1"]),
        (["--data.batch_size", "many"], ["--data.batch_size many", "integer"]),
        (["--algorithm.alpha", "1.5"], ["--algorithm.alpha 1.5", "less than 1"]),
        (["--model.name", "lenett"], ["--model.name lenett", "lenet"]),
        (["--algorithm.name", "adam"], ["adam", "parle", "entropy_sgd", "elastic_sgd", "sgd"]),
        (["--schedule.lr", "nan"], ["--schedule.lr nan", "finite"]),
        (["--schedule.lr", "inf"], ["--schedule.lr inf", "finite"]),
        # larger than what float32, an exponent or torch's seeds take
        (["--schedule.lr", "1e300"], ["--schedule.lr 1e300", "less than or equal to 1000000"]),
        (["--schedule.epochs", "1e308"], ["--schedule.epochs 1e308", "less than"]),
        (["--schedule.drops", "1,1e308"], ["--schedule.drops.1 1e", "less than"]),
        (["--algorithm.L", "9" * 30], ["--algorithm.L 999", "less than"]),
        (["--run.seed", str(2**64)], ["--run.seed", "less than 4294967296"]),
        (["--model.depth", "1000000"], ["--model.depth 1000000", "less than or equal to 1000"]),
        (["--recipe", "x" * 5000 + ".toml"], [".toml: no such file"]),
        (["--schedule.drops", "2,x"], ["--schedule.drops.1 x", "number"]),
        (["--replicas"], ["--replicas", "expected one argument"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_is_answered_by_name(arguments, words):
    message = refused(*arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nbatchsize = 3", ["data.batchsize", "unknown setting", "data.batch_size"]),
        ("[data\n", ["not a TOML file"]),
        ("data = 3", ["data 3"]),
        ("algorithm = 3", ["algorithm 3"]),
        ("[algorithm]\nname = ['sgd']", ["--algorithm.name"]),
        ('[data]\npath = "x\\ny"', ["--data.path", "printable"]),
        ("_cli_parse_args = true", ["mine.toml", "_cli_parse_args", "unknown setting"]),
        ("nothing-like-it = 3", ["mine.toml", "nothing-like-it", "--help"]),
        ("[data]\nname = '" + "x" * 999 + "'", ["--data.name xxx", "...: must be"]),
        ('[data]\nname = "../mine"', ["--data.name ../mine: must be letters, digits, _ and -"]),
        ('[data]\nname = "-x"', ["--data.name -x: must be letters"]),
        ("a = " + "[" * 20_000, ["mine.toml is not a TOML file"]),
        ("sgd = 3\n[algorithm]\nname = 'sgd'", ["[sgd]", "table"]),
    ],
)
def test_a_mistake_in_a_recipe_too(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    message = refused("--recipe", str(path))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("algorithm", "size", "n"),
    [("parle", 12, 3), ("elastic_sgd", 4, 2), ("parle", 5, 1), ("sgd", 12, 1), ("entropy_sgd", 4, 1)],
)
def test_default_replicas(algorithm, size, n):
    assert default_replicas(algorithm, size) == n


def test_a_set_of_ones_own_has_a_name_of_its_own():
    assert load(["--data.name", "my_cells-2"]).data.name == "my_cells-2"


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        load(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in option_names())


def test_a_recipe_extends_another_and_says_what_differs(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "lenet_mnist"\n[schedule]\nlr = 0.3\n[sgd.schedule]\nepochs = 7\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\nreplicas = 6\n[schedule]\ndrops = [1]\n')
    mine = load(["--recipe", str(tmp_path / "mine.toml")])
    assert (mine.data.name, mine.schedule.lr, mine.schedule.drops, mine.replicas) == ("mnist", 0.3, [1], 6)
    sgd = load(["--recipe", str(tmp_path / "mine.toml"), "--algorithm.name", "sgd"])
    assert (sgd.schedule.epochs, sgd.schedule.lr) == (7, 0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "mine.toml"', ["mine.toml", "extends itself"]),
        ('extends = "lenet_mnits"', ["mine.toml", "unknown recipe", "lenet_mnist"]),
        ('extends = "none.toml"', ["mine.toml", "extends none.toml", "no such file"]),
        ("extends = 3", ["mine.toml", "extends must be the name of a recipe"]),
    ],
)
def test_what_cannot_be_extended_is_said(text, words, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(BadInput) as error:
        load(["--recipe", str(tmp_path / "mine.toml")])
    assert all(word in str(error.value) for word in words), error.value


MAILBOX = ["--coupling.via", "mailbox", "--coupling.folder", "box", "--coupling.member", "1"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--coupling.member", "1"],
            "--coupling.member 1: belongs to --coupling.via mailbox, not to mpi",
        ),
        (MAILBOX[:4], "--coupling.via mailbox: needs the number of this member: --coupling.member 0, 1, 2 or so"),
        (MAILBOX[:2], "--coupling.via mailbox: needs the folder that its members share: --coupling.folder DIR"),
        ([*MAILBOX, "--algorithm.name", "sgd"], "--coupling.via mailbox: couples parle and elastic_sgd, not sgd"),
        ([*MAILBOX, "--replicas", "2"], "--replicas 2: a member of a mailbox is one replica; leave --replicas out"),
        (
            [*MAILBOX, "--coupling.wait_for", "1"],
            "--coupling.member 1: with --coupling.wait_for 1 it must be less",
        ),
        (
            [*MAILBOX, "--coupling.wait_for", "2", "--coupling.weight", "2"],
            "--coupling.wait_for 2: is for members of parle, of equal weight; leave it out",
        ),
        ([*MAILBOX, "--algorithm.payload", "bfloat16"], "--algorithm.payload bfloat16: does not go by a mailbox"),
        ([*MAILBOX, "--algorithm.rho0", "inf"], "--algorithm.rho0 inf: is for replicas without a coupling"),
    ],
)
def test_what_does_not_go_with_a_mailbox_is_refused(given, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        settle(load(given), 4)


def test_a_member_is_one_replica_of_all_its_ranks():
    settings = load(MAILBOX)
    settle(settings, 6)
    assert settings.replicas == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["overlap", "true"], "overlap true: belongs to diloco, not to parle; leave it out"),
        (["post_local_start", "2"], "post_local_start 2: belongs to local_sgd, not to parle; leave it out"),
        (["eta2", "0.1", "name", "elastic_sgd"], "eta2 0.1: belongs to parle, not to elastic_sgd; leave it out"),
        (["mu2", "0.5"], "mu2 0.5: x has no momentum where it is the mean; give --algorithm.eta2, too"),
        (["eta2", "0.1", "rho0", "inf"], "eta2 0.1: there is no x with --algorithm.rho0 inf; leave one of them out"),
        (["inner", "adamw", "inner_lr", "0.1", "name", "local_sgd"], "inner adamw: belongs to parle, entropy_sgd and"),
    ],
)
def test_what_belongs_to_another_algorithm_is_refused(given, told):
    pairs = zip(given[::2], given[1::2], strict=True)
    with pytest.raises(BadInput, match=re.escape(f"--algorithm.{told}")):
        settle(load([part for key, value in pairs for part in (f"--algorithm.{key}", value)]), 4)
