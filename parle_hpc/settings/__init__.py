"""Settings: typed, checked, from a recipe and the command line.

A recipe is a short TOML file of what differs from the defaults, or from another recipe: `extends = "NAME"`, or a
file beside it. A table named after an algorithm holds what differs again where that algorithm is chosen, e.g.
[sgd.schedule] beside [schedule].
"""

import tomlkit

from .command_line import load, not_taken, option_names
from .sections import ALGORITHMS, DATA_PARALLEL, PAPERS, ROUNDS, Schedule, Settings
from .settled import default_replicas, rounds_of, settle

__all__ = [
    "ALGORITHMS",
    "DATA_PARALLEL",
    "PAPERS",
    "ROUNDS",
    "Schedule",
    "Settings",
    "default_replicas",
    "load",
    "option_names",
    "rounds_of",
    "settle",
    "text_of",
    "write",
]


def text_of(settings):
    """The settings in force as TOML that `--recipe` takes, on any machine that has the data set's file."""
    elsewhere = {"recipe": True, "out": True, "resume": True, "data": {"node_copy"}}
    # a task's options may be of any type that pydantic knows, such as Path
    tables = settings.model_dump(mode="json", exclude=elsewhere, exclude_none=True)
    for section, key in not_taken(settings.task):
        tables[section].pop(key, None)
    return f"# recipe {settings.recipe or settings.task.file}\n{tomlkit.dumps(tables)}"


def write(settings, path):
    """`text_of` them as a file."""
    path.write_text(text_of(settings), encoding="utf-8")
