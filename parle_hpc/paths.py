"""Paths as people write them: ~ and $VARIABLES also where no shell has replaced them, as in --out=~/x or a recipe."""

import argparse
import os
import re


def expand(text):
    """The path that is meant. Raises ValueError where it names a variable that is not set, or an unknown user."""
    path = os.path.expanduser(os.path.expandvars(text))
    left = re.search(r"\$(\w+|\{[^}]*\})", path)
    if left:
        raise ValueError(f"{left[0]} is not set in this environment; export it, or write the folder out")
    if path.startswith("~"):
        raise ValueError(f"there is no home of {path.split('/')[0]}; write the folder out")
    if not path.isprintable():
        raise ValueError("must hold printable characters alone")
    return path


def as_path(text):
    """`expand` for a command line."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
