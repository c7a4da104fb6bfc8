"""The class of a task of one's own, found by the file or module that has it, and settings that know its options."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from ..errors import BadInput, brief, first_line, nearest
from .language import Language
from .sections import IMAGES, NoOptions, Settings, TaskSection

# the options of the tasks that come with parle_hpc
BUILT_IN: dict[str, type[BaseModel]] = {IMAGES: NoOptions, "language": Language}
BASE = ("parle_hpc.tasks.task", "Task")
FUNCTIONS = ("model", "dataset", "loss", "scores")


def is_file(file):
    """Whether `task.file` names a file; else it is a module."""
    return file.endswith(".py") or os.sep in file


def find_class(file, name=""):
    """The class of a task of one's own. Raises BadInput where there is none, or it is not whole.

    Args:
        file: path of a Python file, the name of an importable module, or module:Class.
        name: of the class; may be empty where there is one.
    """
    changed = os.stat(file).st_mtime_ns if is_file(file) and os.path.isfile(file) else 0
    return read_class(file, name, changed)


@cache
def read_class(file, name, changed):
    """As find_class; changed: when the file was, in ns, so that a file that stays is run once."""
    source, _, tail = (file, "", "") if is_file(file) else file.partition(":")
    name, told = name or tail, f"--task.file {file}"
    module = from_file(Path(source), told) if is_file(source) else from_module(source, told)
    found = {
        key: value
        for key, value in vars(module).items()
        if base_of(value) not in (None, value) and (value.__module__ == module.__name__ or key == name)
    }
    if not found:
        raise BadInput(f"{told}: has no task; define a class over parle_hpc.Task with {', '.join(FUNCTIONS)}")
    if not name and len(found) > 1:
        raise BadInput(f"{told}: has the tasks {', '.join(found)}; say which by --task.name")
    if name and name not in found:
        raise BadInput(f"--task.name {brief(name)}: {file} has no such task; {nearest(name, [*found])}")
    return whole(found[name or next(iter(found))], told)


def base_of(value):
    """parle_hpc.Task, where a class is over it; None where not. Without importing it, which takes seconds."""
    ways = value.__mro__ if inspect.isclass(value) else ()
    return next((kind for kind in ways if (kind.__module__, kind.__name__) == BASE), None)


def whole(kind, told):
    """`kind`, which has all that a task must have. Raises BadInput."""
    base = base_of(kind)
    for function in FUNCTIONS:
        if getattr(kind, function) is getattr(base, function):
            wanted = ", ".join(inspect.signature(getattr(base, function)).parameters)
            raise BadInput(f"{told}: {kind.__name__} lacks {function}({wanted})")
    options = kind.Options
    if not (inspect.isclass(options) and issubclass(options, BaseModel)):
        raise BadInput(f"{told}: {kind.__name__}.Options must be a class over Task.Options, or pydantic's BaseModel")
    for taken in TaskSection.model_fields.keys() & options.model_fields.keys():
        raise BadInput(f"{told}: {kind.__name__}.Options cannot have {taken!r}, which [task] has already")
    return kind


def from_file(path, told):
    """The module that a Python file is. Raises BadInput, with the line of what is wrong in it."""
    if not path.is_file():
        raise BadInput(f"{told}: no such file")
    path = path.absolute()
    module_name = f"task_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    # the file may import what lies beside it, as a script may
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[module_name] = module
    with_line(lambda: spec.loader.exec_module(module), path, told)
    return module


def from_module(name, told):
    """An importable module. Raises BadInput."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return with_line(lambda: importlib.import_module(name), None, told)


def with_line(function, path, told):
    """What `function`, which runs code of the user's, gives; what it raises as BadInput with the line in `path`."""
    try:
        return function()
    except SyntaxError as error:
        raise BadInput(f"{told}: {Path(error.filename or '?').name}, line {error.lineno}: {error.msg}") from None
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{told}: {in_words(error, path)}") from None


def in_words(error, path=None):
    """An exception of a user's code in a line: where in `path` (None: where at all), and what."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename == str(path)]
    mine = mine or [frame for frame in frames if not frame.filename.startswith("<") and not ours(frame)]
    place = f"{Path(mine[-1].filename).name}, line {mine[-1].lineno}: " if mine else ""
    return f"{place}{type(error).__name__}: {first_line(error)}"


def ours(frame):
    return frame.filename.startswith(str(Path(__file__).parent.parent))


def settings_for(file, name):
    """The Settings whose section `task` knows the options of a task. Raises BadInput where it cannot be found."""
    if file:
        options = find_class(file, name).Options
    else:
        name = name or IMAGES
        if name not in BUILT_IN:
            raise BadInput(
                f"--task.name {brief(name)}: no such task; {nearest(name, [*BUILT_IN])}, or give --task.file"
            )
        options = BUILT_IN[name]
    return settings_with(options)


@cache
def settings_as_they_stand():
    """Settings whose section `task` takes whatever options there are."""
    section: Any = type("Task", (TaskSection,), {"__module__": __name__, "model_config": ConfigDict(extra="allow")})
    return create_model("Settings", __base__=Settings, task=(section, section()))


@cache
def settings_with(options):
    """Settings whose section `task` has `options`, a pydantic model, too."""
    strict = {"model_config": ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True)}
    section: Any = type("Task", (options, TaskSection), {"__module__": __name__, **strict})
    required = any(field.is_required() for field in options.model_fields.values())
    return create_model("Settings", __base__=Settings, task=(section, ... if required else section()))
