"""A tokenizer of the user's own, `--tokenizer MODULE:NAME`, and the one line where it cannot be used."""

import importlib
import os
import sys
from numbers import Integral

import numpy as np

from ..errors import BadInput, brief

SIZES = ("vocab_size", "n_vocab", "vocabulary")
MOST = 1 << 32  # tokens that four bytes tell apart


class Tokenizer:
    """A callable from text to integers of at least 0, or an object with such an `encode`, found by its name.

    Args:
        name: MODULE:NAME, a module that Python finds, also in the current folder, and what in it is the tokenizer.

    Raises BadInput where there is none.
    """

    def __init__(self, name):
        self._told = f"--tokenizer {brief(name)}"
        module, _, attribute = name.partition(":")
        if not (module and attribute):
            raise BadInput(f"{self._told}: right is MODULE:NAME, such as my_tokens:encode for encode in my_tokens.py")
        self._found = self._import(module, attribute)
        self._encode = getattr(self._found, "encode", self._found)
        if isinstance(self._found, (str, type)) or not callable(self._encode):
            raise BadInput(
                f"{self._told}: is of type {type(self._found).__name__}; right is a function from text to integers, or "
                "an object with encode"
            )

    def _import(self, module, attribute):
        # as python -m has it, where a console script has not
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        try:
            found = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        # a module of the user's raises whatever it likes
        except Exception as error:
            raise BadInput(f"{self._told}: cannot be imported ({type(error).__name__}: {error})") from None
        return found

    def tokens(self, text):
        """The tokens of a text, int64 (N,). Raises BadInput where they are no integers of at least 0."""
        try:
            tokens = np.asarray(self._encode(text))
        except Exception as error:
            raise BadInput(f"{self._told}: fails on the text ({type(error).__name__}: {error})") from None
        if tokens.size == 0:
            return np.zeros(0, np.int64)
        if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
            raise BadInput(
                f"{self._told}: gives {tokens.dtype} {tokens.shape} for {brief(repr(text[:20]))}...; right is a "
                "sequence of integers"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= MOST:
            odd = low if low < 0 else high
            raise BadInput(f"{self._told}: gives the token {odd}; right are integers from 0 to {MOST - 1:,}")
        return tokens.astype(np.int64)

    def vocabulary(self, largest):
        """How many different tokens it may give; where it does not say so, one more than the largest that it gave.

        Raises BadInput where it gave larger ones than it says.
        """
        size = self._size()
        if size is None:
            return largest + 1
        if largest >= size:
            raise BadInput(
                f"{self._told}: gives the token {largest}, and its vocabulary of {size} allows 0 to {size - 1}"
            )
        return size

    def _size(self):
        for key in SIZES:
            size = getattr(self._found, key, None)
            size = size() if callable(size) else size
            if isinstance(size, Integral):
                return int(size)
        return len(self._found) if hasattr(self._found, "__len__") else None
