"""Recipes: short TOML files of what differs from the defaults, or from the recipe that they extend."""

import os
from contextlib import suppress
from importlib import resources
from pathlib import Path

import tomlkit
import tomlkit.exceptions

from ..errors import BadInput, brief, nearest
from ..paths import expand

RECIPES = resources.files(__package__)


def recipe_names():
    return sorted(path.name[:-5] for path in RECIPES.iterdir() if path.name.endswith(".toml"))


def read_recipe(name):
    """The recipe's tables, on top of those of the recipe that it extends.

    Raises BadInput where a recipe does not exist or is not TOML, or where they extend each other in a circle.
    """
    tables, came_by = {}, []
    while True:
        path = recipe_path(name, came_by)
        if path in came_by:
            raise BadInput(f"--recipe {came_by[0]}: extends itself by way of {came_by[-1]}; leave one extends out")
        came_by.append(path)
        try:
            found = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
        except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError, OSError) as error:
            raise BadInput(f"--recipe {name} is not a TOML file: {error}") from None
        stay_beside(found, path)
        name = found.pop("extends", None)
        tables = merge(found, tables)
        if name is None:
            return tables
        if not isinstance(name, str):
            raise BadInput(f"--recipe {path}: extends must be the name of a recipe, or a file, not {brief(repr(name))}")
        name = expanded(name, f"--recipe {path}: extends")


def expanded(text, told):
    """A path with ~ and $VARIABLES taken for what they stand for. Raises BadInput, which `told` begins."""
    try:
        return expand(text)
    except ValueError as error:
        raise BadInput(f"{told} {brief(text)}: {error}") from None


def stay_beside(tables, path):
    """A task's file that a recipe names lies beside the recipe, wherever the run is started."""
    task = tables.get("task")
    file = task.get("file") if isinstance(task, dict) else None
    if isinstance(file, str) and file.endswith(".py") and isinstance(path, Path):
        with suppress(ValueError):  # of a variable that is not set, which is told where the settings are checked
            task["file"] = str(path.parent / expand(file))


def recipe_path(name, came_by):
    """Where a recipe lies; a file that another one extends is looked for beside that one."""
    told = f"--recipe {name}" if not came_by else f"--recipe {came_by[-1]}: extends {brief(name)}"
    if name.endswith(".toml"):
        path = Path(came_by[-1]).parent / name if came_by else Path(name)
        if not os.path.isfile(path):
            raise BadInput(f"{told}: no such file")
        return path.resolve()
    if name in recipe_names():
        return RECIPES.joinpath(f"{name}.toml")
    raise BadInput(f"{told}: unknown recipe; {nearest(name, recipe_names())}")


def merge(base, over):
    """`over` on top of `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged
