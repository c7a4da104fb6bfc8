"""Settings from a recipe and the command line."""

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from ..errors import BadInput, brief, nearest
from ..paths import expand
from ..recipes import merge, read_recipe
from .sections import ALGORITHMS, Section, Settings

PROGRAM = "python -m parle_hpc.train"
EVERYTHING = f"{PROGRAM} --help lists what there is"


def option_names():
    """Every option of the command line, without its dashes."""
    names = ["help"]
    for name, field in Settings.model_fields.items():
        section = (
            field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Section) else None
        )
        names += [f"{name}.{key}" for key in section.model_fields] if section else [name]
    return names


def read_command_line(arguments):
    """The given settings as nested tables, unchecked."""
    names = option_names()
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in names:
            raise BadInput(f"--{name}: unknown setting; {nearest(name, names, EVERYTHING)}")
    try:
        source = CliSettingsSource(
            Settings,
            cli_prog_name=PROGRAM,
            cli_parse_args=arguments,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
        )
        return source()
    except SettingsError as error:
        raise BadInput(str(error).removeprefix("error parsing CLI: ").replace("argument ", "", 1)) from None


def one_line(error, recipe):
    """The first complaint of pydantic as one line with the setting's name, value and what would be right."""
    first = error.errors()[0]
    name = brief(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        # an unknown option of the command line has not come this far
        return f"--recipe {recipe}: {name!r} is an unknown setting; {nearest(name, option_names(), EVERYTHING)}"
    message = first["msg"].replace("Input should be", "must be").replace("Value error, ", "").replace("'", "")
    return f"--{name} {brief(first['input'])}: {message[0].lower()}{message[1:]}"


def load(arguments):
    """Settings from a command line (a list of strings), the recipe it names, and the defaults.

    Raises BadInput, with one line that names the setting, for anything wrong in them; exits 0 after --help.
    """
    given = read_command_line(arguments)
    source = given.get("recipe", Settings.model_fields["recipe"].default)
    try:
        path = expand(source)
    except ValueError as error:
        raise BadInput(f"--recipe {brief(source)}: {error}") from None
    recipe = read_recipe(path)
    variants = {name: recipe.pop(name, {}) for name in ALGORITHMS}
    for name, table in variants.items():
        if not isinstance(table, dict):
            raise BadInput(f"--recipe {source}: [{name}] must be a table of sections, not {brief(repr(table))}")
    algorithm = merge(recipe, given).get("algorithm", {})
    chosen = algorithm.get("name", "parle") if isinstance(algorithm, dict) else "parle"
    variant = variants[chosen] if chosen in ALGORITHMS else {}
    tables = merge(merge(recipe, variant), given)
    try:
        return Settings(**tables)
    except ValidationError as error:
        raise BadInput(one_line(error, source)) from None
