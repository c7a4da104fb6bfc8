"""A text of the user's, or the built-in one, as tokens in an HDF5 file."""

import hashlib
import os
from pathlib import Path

import numpy as np

from ..errors import BadInput
from .advice import PREPARE, TEXT, TOPICS, is_known, is_name
from .files import ZIP, read
from .tokenizer import Tokenizer
from .tokens import SHORTEST
from .writing import keep_apart, output, write

PARTS = ("train", "test")
NARROW = 1 << 16  # tokens that two bytes tell apart


def prepare_text(name, sources=None, out=None, tokenizer=None, validation=None):
    """Write the HDF5 file of a text's tokens; its path.

    Args:
        name: "text", whose set is then called as its file is, or "topics", the built-in one.
        sources: the text's files, which are joined.
        out: file to write.
        tokenizer: MODULE:NAME, as Tokenizer has it; None: a token is a byte.
        validation: share of the text, its end, that is the test part; a tenth where None.

    Raises BadInput where the text is not what it should be or the file cannot be written.
    """
    validation = 0.1 if validation is None else validation
    if not 0 < validation < 1:
        raise BadInput(f"--validation {validation:g}: must be between 0 and 1")
    path = output(name, out)
    if name == TOPICS:
        if sources:
            raise BadInput(f"{TOPICS} comes with Python; leave --source out, or prepare {TEXT}")
        told, raw = TOPICS, topics()
    else:
        name = name_of(path)
        told, raw = f"--source {' '.join(map(str, sources or []))}", joined(sources, path)
    parts, vocabulary = split(told, raw, tokenizer, validation)

    def fill(file):
        file.attrs.update(vocabulary=vocabulary, tokenizer=tokenizer or "bytes")
        for part, (tokens, size) in parts.items():
            file.attrs[f"{part}_bytes"] = size
            file.create_dataset(f"{part}/tokens", data=tokens)

    write(path, name, checksum_of(parts), fill)
    return path


def name_of(path):
    """What a text is called: as its file. Raises BadInput."""
    if not is_name(path.stem):
        raise BadInput(f"--out {path}: names the set, by letters, digits, _ and -; give another name")
    if is_known(path.stem):
        raise BadInput(f"--out {path}: names the set, and {path.stem} is another one; give another name")
    return path.stem


def topics():
    """What Python's help says of its topics, in their order, as bytes; other versions of Python say something else."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadInput(f"{TOPICS}: this Python comes without its help ({error}); prepare {TEXT}") from None
    return "\n".join(text for _, text in sorted(topics.items())).encode()


def joined(sources, out):
    """The bytes of the files, one after the other. Raises BadInput."""
    if not sources:
        raise BadInput(f"{TEXT}: needs its files, {PREPARE} {TEXT} --source FILE... --out data/NAME.h5")
    keep_apart(out, *sources)
    return b"".join(map(content, map(Path, sources)))


def content(path):
    """The bytes of a text's file. Raises BadInput where it is none."""
    if not os.path.lexists(path):
        raise BadInput(f"--source {path}: no such file")
    if path.is_dir():
        raise BadInput(f"--source {path}: is a folder; give its files, such as {path}/*.txt")
    if not path.is_file():
        raise BadInput(f"--source {path}: is not a file")
    raw = read(path)
    if not raw:
        raise BadInput(f"--source {path}: is empty")
    if raw.startswith((b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", ZIP)):
        raise BadInput(f"--source {path}: is packed; unpack it first")
    return raw


def split(told, raw, tokenizer, validation):
    """({part: (tokens, bytes of its text)}, vocabulary) of a text, the bytes `raw`.

    told: what a message calls it. Raises BadInput.
    """
    made = Tokenizer(tokenizer) if tokenizer else None
    text = decoded(told, raw) if made else raw
    first, parts = int(len(text) * (1 - validation)), {}
    for part, content in zip(PARTS, (text[:first], text[first:]), strict=True):
        tokens = made.tokens(content) if made else np.frombuffer(content, np.uint8)
        if len(tokens) < SHORTEST:
            raise BadInput(f"{told}: too little text, of which the {part} part has {len(tokens)} tokens; give more")
        parts[part] = tokens, len(content.encode() if made else content)
    largest = max(int(tokens.max()) for tokens, _ in parts.values())
    vocabulary = made.vocabulary(largest) if made else 256
    kind = np.uint16 if vocabulary <= NARROW else np.uint32
    return {part: (tokens.astype(kind), size) for part, (tokens, size) in parts.items()}, vocabulary


def decoded(told, raw):
    """The text that bytes are. Raises BadInput."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{told}: is not UTF-8 at byte {error.start:,}, which a tokenizer needs; convert it, or leave "
            "--tokenizer out"
        ) from None


def checksum_of(parts):
    """MD5 of the tokens of the parts, and of where they end."""
    digest = hashlib.md5()
    for tokens, _ in parts.values():
        digest.update(f"{len(tokens)} {tokens.dtype.itemsize} ".encode())
        digest.update(tokens.tobytes())
    return digest.hexdigest()
