"""Settings from a recipe and the command line."""

from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from ..errors import BadInput, brief, complaint, nearest
from ..recipes import expanded, merge, read_recipe
from .sections import ALGORITHMS, DATA_PARALLEL, IMAGES, OF_TASKS, ROUNDS, TAKEN, Settings
from .task_file import is_file, settings_as_they_stand, settings_for

PROGRAM = "python -m parle_hpc.train"
EVERYTHING = f"{PROGRAM} --help lists what there is"


def option_names(kind=Settings):
    """Every option of the command line, without its dashes; kind: Settings, or those that know a task's options."""
    names = ["help"]
    for name, field in kind.model_fields.items():
        section = field.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        names += [f"{name}.{key}" for key in section.model_fields] if is_section else [name]
    return names


def read_command_line(arguments, kind=Settings):
    """The given settings as nested tables, unchecked."""
    names = option_names(kind)
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in names:
            raise BadInput(f"--{name}: unknown setting; {nearest(name, names, EVERYTHING)}")
    try:
        source = CliSettingsSource(
            kind,
            cli_prog_name=PROGRAM,
            cli_parse_args=arguments,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
        )
        return source()
    except SettingsError as error:
        told = str(error).removeprefix("error parsing CLI: ").replace("argument ", "", 1)
        for option, ending in (("recipe", ".toml"), ("task.file", ".py")):
            if told.startswith("unrecognized") and told.endswith(ending):
                told += f"; did you mean --{option} {told.split()[-1]}?"
        raise BadInput(told) from None


def given_last(arguments, option):
    """What the command line gives to `option`, before all of it can be read; None where it does not."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == f"--{option}":
            found = following
        elif argument.startswith(f"--{option}="):
            found = argument.partition("=")[2]
    return found


def one_line(error, recipe, kind):
    """The first complaint of pydantic as one line with the setting's name, value and what would be right."""
    first = error.errors()[0]
    name = brief(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        # an unknown option of the command line has not come this far
        return f"--recipe {recipe}: {name!r} is an unknown setting; {nearest(name, option_names(kind), EVERYTHING)}"
    if first["type"] == "missing":
        return f"--{name}: has no default; give it, on the command line or in the recipe"
    return f"--{name} {complaint(first)}"


def load(arguments, open_task=True):
    """Settings from a command line (a list of strings), the recipe it names, and the defaults.

    open_task: take the options of a task of one's own from its file; else they are taken as they stand.

    Raises BadInput, with one line that names the setting, for anything wrong in them; exits 0 after --help.
    """
    file = given_last(arguments, "task.file")
    source = given_last(arguments, "recipe")
    if source is None:
        # the built-in recipe says nothing of a task that is given without one
        source = "" if file else Settings.model_fields["recipe"].default
    recipe = read_recipe(expanded(source, "--recipe")) if source or not file else {}
    variants = {name: recipe.pop(name, {}) for name in ALGORITHMS}
    for name, table in variants.items():
        if not isinstance(table, dict):
            raise BadInput(f"--recipe {source}: [{name}] must be a table of sections, not {brief(repr(table))}")
    kind = kind_of(recipe.get("task"), file, given_last(arguments, "task.name"), open_task)
    given = {"recipe": source, **read_command_line(arguments, kind)}
    algorithm = merge(recipe, given).get("algorithm", {})
    chosen = algorithm.get("name", "parle") if isinstance(algorithm, dict) else "parle"
    variant = {}
    if chosen in ALGORITHMS:
        # what is counted in passes has the recipe's sections of sgd, but for what it says of the algorithm itself
        alike = {} if chosen in ROUNDS else dict(variants["sgd"])
        if chosen not in DATA_PARALLEL:
            alike.pop("replicas", None)
        variant = merge(alike, variants[chosen])
    tables = merge(merge(recipe, variant), given)
    try:
        settings = kind(**tables)
    except ValidationError as error:
        raise BadInput(one_line(error, source, kind)) from None
    refuse_what_is_another_tasks(tables, settings.task)
    if is_file(settings.task.file):
        settings.task.file = str(Path(settings.task.file).absolute())
    return settings


def kind_of(table, file, name, open_task):
    """The Settings that know the options of the task; table: the recipe's [task]; file, name: the command line's."""
    table = table if isinstance(table, dict) else {}
    file, name = (table.get(key, "") if value is None else value for key, value in (("file", file), ("name", name)))
    if not (isinstance(file, str) and isinstance(name, str)):
        return Settings
    if file and not open_task:
        return settings_as_they_stand()
    return settings_for(expanded(file, "--task.file"), name)


def not_taken(task):
    """(Section, key) of the settings that say nothing of the task that section `task` names."""
    taken = {} if task.file else TAKEN[task.name or IMAGES]
    return [(section, key) for section, keys in OF_TASKS.items() for key in sorted(keys - taken.get(section, set()))]


def refuse_what_is_another_tasks(tables, task):
    """Raises BadInput where a setting is given that says nothing of this task."""
    for section, key in not_taken(task):
        if key in tables.get(section, {}):
            whose = " and ".join(other for other, its in TAKEN.items() if key in its.get(section, ()))
            raise BadInput(
                f"--{section}.{key}: belongs to the task {whose}, not to {task.file or task.name}; leave it out"
            )
