"""Paths as people write them, on every command line and in recipes."""

import argparse
import importlib
import sys

import pytest

from parle_hpc.errors import BadInput
from parle_hpc.paths import as_path, expand
from parle_hpc.settings import load


@pytest.fixture(autouse=True)
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/runs/x", "{home}/runs/x"),
        ("$SCRATCH/x", "/scratch/me/x"),
        ("${SCRATCH}/x", "/scratch/me/x"),
        ("~", "{home}"),
        ("runs/x~", "runs/x~"),
        ("runs/5$", "runs/5$"),
        ("/a b/(c)", "/a b/(c)"),
    ],
)
def test_the_path_that_is_meant(tmp_path, written, meant):
    meant = meant.format(home=tmp_path)
    assert expand(written) == as_path(written) == meant
    given = load([f"--out={written}", "--resume", written, f"--data.path={written}"])
    assert given.out == given.resume == given.data.path == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("$NOWHERE/x", ["$NOWHERE/x", "$NOWHERE is not set"]),
        ("${NOWHERE}/x", ["${NOWHERE} is not set"]),
        ("~nobody-of-that-name/x", ["no home of ~nobody-of-that-name"]),
    ],
)
def test_a_path_that_cannot_be_meant(written, words):
    for option in ("--out", "--data.path", "--recipe"):
        with pytest.raises(BadInput) as refused:
            load([option, written])
        assert all(word in str(refused.value) for word in [option, *words]), refused.value
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        as_path(written)
    assert all(word in str(refused.value) for word in words)


def test_in_a_recipe_too_and_of_a_recipe(tmp_path):
    (tmp_path / "mine.toml").write_text('out = "$SCRATCH/x"\n[data]\npath = "~/digits.h5"\n')
    (tmp_path / "other.toml").write_text('extends = "~/mine.toml"\n')
    for name in ("mine", "other"):
        given = load(["--recipe", f"~/{name}.toml"])
        assert (given.out, given.data.path) == ("/scratch/me/x", str(tmp_path / "digits.h5"))
    (tmp_path / "other.toml").write_text('extends = "$NOWHERE/mine.toml"\n')
    with pytest.raises(BadInput, match=r"other.toml: extends \$NOWHERE/mine.toml: \$NOWHERE is not set"):
        load(["--recipe", "~/other.toml"])


COMMANDS = [
    ("evaluate", ["{}"]),
    ("analysis", ["{}", "x"]),
    ("analysis", ["x", "--replicas", "{}"]),
    ("analysis", ["x", "--out", "{}"]),
    ("report", ["{}", "--out", "x"]),
    ("report", ["x", "--out", "{}"]),
    ("report", ["x", "--tensorboard", "{}"]),
    ("export", ["{}", "--safetensors", "x"]),
    ("export", ["x", "--safetensors", "{}"]),
    ("doctor", ["--out", "{}"]),
    ("reproduce", ["fig1", "--data", "{}"]),
    ("reproduce", ["fig1", "--runs", "{}"]),
    ("reproduce", ["fig1", "--out", "{}"]),
    ("data.prepare", ["mnist", "--source", "{}"]),
    ("data.prepare", ["mnist", "--out", "{}"]),
]


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_every_command_line_takes_them(monkeypatch, name, arguments):
    command = importlib.import_module(f"parle_hpc.{name}")
    monkeypatch.setattr("sys.argv", [name, *(argument.format("$NOWHERE/x") for argument in arguments)])
    monkeypatch.setattr(command, "leave", lambda message, status: sys.exit(f"{status} {message}"))
    with pytest.raises(SystemExit, match=r"2 .*\$NOWHERE is not set"):
        command.main()
