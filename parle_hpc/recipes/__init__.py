"""Recipes: short TOML files of what differs from the defaults, or from the recipe that they extend."""

import os
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
        name = found.pop("extends", None)
        tables = merge(found, tables)
        if name is None:
            return tables
        if not isinstance(name, str):
            raise BadInput(f"--recipe {path}: extends must be the name of a recipe, or a file, not {brief(repr(name))}")
        try:
            name = expand(name)
        except ValueError as error:
            raise BadInput(f"--recipe {path}: extends {brief(name)}: {error}") from None


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
