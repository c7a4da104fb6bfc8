"""What is thrown at the programs: hypothesis strategies of command lines, settings files and data files, most of them
wrong.
"""

from typing import NamedTuple

import tomlkit
from faults import fuzz_files as files
from faults.fuzz_sources import damaged_source, own_source
from hypothesis import strategies as st

from parle_hpc.settings import ALGORITHMS, option_names

# one step of a small network, which ends the cases that are right
SETTINGS = {
    "data": {"name": "digits", "path": "data.h5", "batch_size": 4},
    "algorithm": {"L": 1},
    "schedule": {"max_rounds": 1},
    "run": {"validate_every": 1, "device": "cpu", "statistics_batches": 1},
}
SECTIONS = ["data", "model", "algorithm", "schedule", "run"]
TRAINS = ("out*/metrics.jsonl", '"round"')
NAMES = [name for name in option_names() if name != "help"]


class Case(NamedTuple):
    """One start of a program.

    program, arguments: what is started. files: what lies in its folder, bytes by path; None is a folder.
    begun: as Server.run has it. names: one of these must be in the line that refuses it.
    """

    program: str
    arguments: list
    files: dict
    names: list
    begun: tuple | None = None


def words():
    """What a hand or a script may put in the place of a word."""
    odd = ["", "-", "--", "-1", "0", "nan", "inf", "-inf", "1e999", "true", "null", "[]", "{}", "{'a':1}", "1,2", "a=b"]
    odd += ["=", "\udcff", "ü", "\u2028x", "a\nb", "\x1b[31m", "x" * 5000, "9" * 5000, "..", "~", ".", "data.h5", "out"]
    odd += ["1e-400", "0x10", "1_000", "1e9", "@file", "empty", "empty/", "data.h5/x", "x/" * 3000]
    # no slash: these programs write where they are told to, and may be root
    return st.sampled_from(odd) | st.text(st.characters(exclude_characters="\0/"), max_size=8)


def values():
    """What may stand behind a key of a settings file."""
    numbers = [0, -1, 1, 3, 2**31, 2**63, 2**64, 10**40, 10**400, 1e308, 1e-320, -0.0, 0.5, 1e9]
    simple = (
        st.sampled_from(
            [*numbers, float("nan"), float("inf"), float("-inf"), True, False, "", "\0", "a\0b", "x" * 5000]
        )
        | words().filter(lambda word: word.isascii())
        | st.integers()
        | st.floats()
        | st.datetimes()
    )
    return (
        simple | st.lists(simple, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "L"]), simple, max_size=2)
    )


@st.composite
def settings_text(draw):
    """A settings file, bytes, with one thing or two that are most likely wrong."""
    tables = {name: dict(table) for name, table in SETTINGS.items()}
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["value", "key", "table", "variant", "top"]))
        value = draw(values())
        section, _, key = draw(st.sampled_from(NAMES)).rpartition(".")
        if kind == "value":
            where = tables.setdefault(section, {}) if section else tables
            if isinstance(where, dict):
                where[key] = value
        elif kind == "key":
            tables[draw(st.sampled_from(SECTIONS))] = {draw(st.text(max_size=6)): value}
        elif kind == "table":
            tables[draw(st.sampled_from(SECTIONS))] = value
        elif kind == "variant":
            tables[draw(st.sampled_from(ALGORITHMS))] = draw(
                st.just(value) | st.just({section or "data": {key: value}})
            )
        else:
            tables[draw(st.text(max_size=6))] = value
    text = tomlkit.dumps(tables).encode("utf-8", "surrogatepass")
    return draw(st.just(text) | files.damaged(text))


def nested():
    """Settings files that would exhaust a reader."""
    return st.sampled_from(
        [
            b"a = " + b"[" * 20_000,
            b"a = " + b"[" * 20_000 + b"]" * 20_000,
            b"a = " + b"{b=" * 5_000,
            b".".join([b"a"] * 3_000) + b" = 1",
            b"[" + b".".join([b"a"] * 3_000) + b"]",
            b'a = "' + b"x" * 1_000_000,
            b"\xef\xbb\xbf[data]\nbatch_size = 4\n",
            b"[data]\r\nbatch_size = 4\r",
            b"\xff\xfe[\0d\0a\0t\0a\0]\0",
            b"data.batch_size = 4\n[data]\nbatch_size = 5\n",
            b"[data]\n[data]\n",
            b"",
            b"\0",
        ]
    )


@st.composite
def recipes(draw):
    """A settings file for training, or one that lies in a run's folder."""
    text = draw(settings_text() | settings_text() | nested())
    names = ["recipe", "--", "config.toml"]
    program = draw(st.sampled_from(["train", "train", "evaluate", "report"]))
    if program == "train":
        given = {"mine.toml": text, "data.h5": files.data_set()}
        arguments = ["--recipe", "mine.toml", "--out", "out"]
        return Case("parle_hpc.train", arguments, given, [*names, *NAMES, "mine.toml", "data.h5"], TRAINS)
    given = {**files.run_folder("run"), "run/config.toml": text, "data.h5": files.data_set()}
    arguments = ["run"] if program == "evaluate" else ["run", "--out", "report"]
    return Case(f"parle_hpc.{program}", arguments, given, [*names, *NAMES, "run", "data.h5"], ("report/runs.md", ""))


OPTIONS = {
    "train": [f"--{name}" for name in NAMES],
    "data.prepare": ["--source", "--out", "--channels", "--tokenizer", "--validation"],
    "evaluate": [],
    "export": ["--safetensors"],
    "report": ["--out", "--tensorboard"],
    "analysis": ["--out", "--replicas"],
    "reproduce": ["--size", "--seeds", "--only", "--rounds", "--data", "--runs", "--out", "--dry-run", "--sbatch"],
}
PLACES = {
    "train": [],
    "data.prepare": ["digits", "mnist", "cifar10", "svhn", "imagenet"],
    "evaluate": ["run", "empty", "data.h5"],
    "export": ["run", "empty", "data.h5"],
    "report": ["run", "empty", "data.h5"],
    "analysis": ["run", "other", "empty"],
    "reproduce": ["table1", "fig1", "table9", "sensitivity"],
}
RIGHT = {
    "train": ["--recipe", "mine.toml", "--out", "out"],
    "data.prepare": ["digits", "--out", "out/digits.h5"],
    "evaluate": ["run"],
    "export": ["run", "--safetensors", "out/x.safetensors"],
    "report": ["run", "--out", "report"],
    "analysis": ["run", "other", "--out", "report"],
    "reproduce": ["table1", "--seeds", "1", "--dry-run"],
}


@st.composite
def command_lines(draw):
    """The right command line of a program with options left out, repeated, unknown, shortened, or with odd values."""
    program = draw(st.sampled_from(["train", "train", *OPTIONS]))
    arguments = list(RIGHT[program])
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from(OPTIONS[program] or ["--help-me"]))
        place = draw(st.integers(0, len(arguments)))
        kind = draw(
            st.sampled_from(["value", "value", "value", "equals", "alone", "short", "unknown", "stray", "drop"])
        )
        word = draw(words())
        if kind == "value":
            arguments[place:place] = [option, word]
        elif kind == "equals":
            arguments[place:place] = [f"{option}={word}"]
        elif kind == "alone":
            arguments[place:place] = [option]
        elif kind == "short":
            arguments[place:place] = [option[: draw(st.integers(3, max(3, len(option) - 1)))], word]
        elif kind == "unknown":
            arguments[place:place] = [
                draw(st.sampled_from(["--batchsize", "--x.y", "-q", "--Out", "—out", "--data.data"])),
                word,
            ]
        elif kind == "stray":
            arguments[place:place] = [draw(st.sampled_from(PLACES[program] or ["stray"]) | words())]
        elif arguments:
            del arguments[min(place, len(arguments) - 1)]
    given = {
        "mine.toml": tomlkit.dumps(SETTINGS).encode(),
        "data.h5": files.data_set(),
        "empty": None,
        **files.run_folder("run"),
        **files.run_folder("other", seed=1),
    }
    names = ["--", "argument", *arguments]
    # without arguments they train, download or compute for hours, which is right
    begun = {"train": ("**/metrics.jsonl", '"seconds"'), "reproduce": ("**/train.log", "")}.get(program)
    return Case(f"parle_hpc.{program}", arguments, given, names, begun)


@st.composite
def hdf5(draw):
    """A prepared data set that is damaged, read by training, evaluation or analysis."""
    content = draw(files.damaged_data_set() | files.damaged(files.data_set()))
    preprocessing = draw(st.sampled_from(["none", "none", "standardize", "gcn", "zca"]))
    given = {"data.h5": content}
    if draw(st.integers(0, 2)) == 0:
        given["mine.toml"] = tomlkit.dumps(SETTINGS).encode()
        arguments = ["--recipe", "mine.toml", "--out", "out", "--data.preprocessing", preprocessing]
        return Case("parle_hpc.train", arguments, given, ["data.h5"], TRAINS)
    given.update(files.run_folder("run", preprocessing=preprocessing))
    return Case("parle_hpc.evaluate", ["run"], given, ["data.h5"])


@st.composite
def run_folders(draw):
    """A run's folder of which one file is damaged, for those that read runs."""
    given = {"data.h5": files.data_set(), **files.run_folder("run"), **files.run_folder("other", seed=1)}
    program = draw(st.sampled_from(["evaluate", "export", "report", "report", "analysis"]))
    name = "run/metrics.jsonl" if program == "report" else "run/reference.pt"
    change = {"run/metrics.jsonl": files.damaged_metrics, "run/reference.pt": files.damaged_weights}[name]
    given[name] = draw(change(given[name]) | files.damaged(given[name]))
    arguments = {"evaluate": ["run"], "export": RIGHT["export"]}
    arguments["report"] = ["run", "other", draw(st.sampled_from(["--out", "--tensorboard"])), "report"]
    arguments["analysis"] = ["run", "other", "--out", "report"]
    return Case(f"parle_hpc.{program}", arguments[program], given, ["run"])


@st.composite
def raw_files(draw, name):
    """A data set's raw files of which one is damaged, for prepare."""
    given = draw(damaged_source(name))
    source = draw(st.sampled_from(["raw", "raw", "raw", *given]))
    names = ["--source", *given, *(path.rpartition("/")[2] for path in given)]
    # whitening takes many seconds, and is reached with what is right alone
    begun = ("out/.*", "") if name.startswith("cifar") else None
    return Case("parle_hpc.data.prepare", [name, "--source", source, "--out", "out/data.h5"], given, names, begun)


@st.composite
def own_files(draw):
    """A data set of the user's own, for prepare."""
    given = draw(own_source())
    source = draw(st.sampled_from(["raw", *given]))
    arguments = ["mine", "--source", source, "--out", "out/data.h5"]
    arguments += draw(st.sampled_from([[], [], ["--channels", "first"], ["--channels", "last"]]))
    return Case("parle_hpc.data.prepare", arguments, given, ["--source"])


KINDS = {
    "settings file": recipes(),
    "command line": command_lines(),
    "HDF5": hdf5(),
    "run folder": run_folders(),
    "IDX": raw_files("mnist"),
    "CIFAR": raw_files("cifar10") | raw_files("cifar100"),
    "SVHN": raw_files("svhn"),
    "own data": own_files(),
}
