"""The reader of the HDF5 file of a text's tokens, which are memory-mapped, as images are."""

import hashlib
from typing import NamedTuple

import numpy as np

from ..errors import BadInput
from .hdf5 import Reader, read, stored

BLOCK = 1 << 24  # tokens that are looked at at a time
SHORTEST = 2  # tokens of a part: the first is seen, the second predicted


class Tokens(NamedTuple):
    """The train and test parts of a text, uint16 or uint32 (N,), and what is known of it.

    vocabulary: number of different tokens. train_bytes, test_bytes: what the parts' text is long. checksum: stands for
    all.
    """

    name: str
    vocabulary: int
    train: np.ndarray
    test: np.ndarray
    train_bytes: int
    test_bytes: int
    checksum: str


def open_tokens(path, name=None, checksum=None, copy=""):
    """Read and check the file of the text `name`; None: whichever it holds.

    checksum: that it must have. copy: of the file, which is read in its place.

    Raises BadInput where the file is missing, not HDF5, torn, lacks a part, or holds another text, or images, or tokens
    that are not as prepare writes them.
    """
    return read(TokenReader, path, name, checksum, copy)


class TokenReader(Reader):
    """Of a text's tokens."""

    text = True

    def read(self):
        """The Tokens. Raises BadInput."""
        if "classes" in self._file.attrs and "vocabulary" not in self._file.attrs:
            raise BadInput(
                f"{self._path} holds images, not the tokens of a text; give a text's file, or train with "
                "--task.name images"
            )
        name, vocabulary = self.named_count("vocabulary")
        train, test = (self._part(f"{part}/tokens", vocabulary) for part in ("train", "test"))
        sizes = [self.count(f"{part}_bytes") for part in ("train", "test")]
        facts = [name, vocabulary, len(train), len(test), *sizes]
        facts += [str(self._file.attrs.get(key)) for key in ("tokenizer", "checksum")]
        stands_for = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
        return Tokens(name, vocabulary, train, test, *sizes, stands_for)

    def _part(self, what, vocabulary):
        """The tokens of one part, memory-mapped."""
        found = self.dataset(what)
        if found.dtype not in (np.uint16, np.uint32) or len(found.shape or ()) != 1 or found.chunks:
            raise self.bad(f"{what} must be uint16 or uint32, one row, contiguous; it is {stored(found)}")
        if len(found) < SHORTEST:
            raise self.bad(f"{what} holds {len(found)} tokens, and {SHORTEST} are the least")
        tokens = self.mapped(found)
        largest = max(int(tokens[start : start + BLOCK].max()) for start in range(0, len(tokens), BLOCK))
        if largest >= vocabulary:
            raise self.bad(f"{what} reach to {largest}; a vocabulary of {vocabulary} allows 0 to {vocabulary - 1}")
        return tokens
