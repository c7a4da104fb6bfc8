"""What ends a run: the exceptions, the one line that says why, and the exit statuses."""

import argparse
import difflib
import re
import sys

BAD_INPUT, DIVERGED, SAVED = 2, 3, 85
LONGEST = 500  # characters of a line, of which a name that was given may be thousands


class BadInput(ValueError):
    """Something that the user can put right: one line that says what is wrong and what would be right.

    Attributes:
        speaks: whether this rank is the one that says so; None: rank 0 is, as the launcher counts.
    """

    def __init__(self, message, speaks=None):
        super().__init__(message)
        self.speaks = speaks


class Disagreement(RuntimeError):
    """Ranks that must do the same thing do not: one line that says what differs, and where.

    Attributes:
        speaker: world rank that says so, of those on which it is raised.
    """

    def __init__(self, message, speaker=0):
        super().__init__(message)
        self.speaker = speaker


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


class Saved(Exception):
    """The run was asked to end, and its state is saved."""


class Drifted(RuntimeError):
    """The ranks of a replica do not hold the same weights any more."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are BadInput, like every other mistake."""

    def error(self, message):
        raise BadInput(message)


def say(message):
    """One line on stderr in a single write, so that the lines of several ranks do not mix."""
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    sys.stderr.write(f"parle_hpc: {line}\n")
    sys.stderr.flush()


def nearest(name, names, otherwise=None):
    """The advice to add to an unknown name: the nearest right one, else `otherwise`, else all that there are."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    # "L" is near to no full name, but is the end of one
    close = close or [right for right in names if right.rpartition(".")[2] == name.rpartition(".")[2]]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"known: {', '.join(names)}"


def first_line(error):
    """What an exception says, in its first line."""
    return str(error).strip().partition("\n")[0]


def brief(value):
    """A value as text that fits into a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def complaint(error):
    """What pydantic says of one value, of its `errors()`: the value, and what would be right."""
    message = error["msg"].replace("Input should be", "must be").replace("Value error, ", "").replace("'", "")
    return f"{brief(error['input'])}: {message[0].lower()}{message[1:]}"


def possible_name(text):
    """A data set's name, of which files are named. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}", text):
        raise ValueError("must be letters, digits, _ and -, at most 60 of them, and not begin with -")
    return text
