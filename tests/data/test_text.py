"""A text to tokens in HDF5, by bytes or a tokenizer of one's own, and the reader's checks."""

import sys

import h5py
import numpy as np
import pytest
from helpers.damage import attribute, claim, external, forget, link, put
from helpers.mpi import module, our_lines

from parle_hpc.data.prepare import from_command_line, prepare
from parle_hpc.data.store import open_dataset
from parle_hpc.data.text import prepare_text
from parle_hpc.data.tokens import open_tokens
from parle_hpc.errors import BadInput

SENTENCE = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. "
TOKENIZERS = '''
class Letters:
    """Each character of a text by its place in the alphabet of all."""

    def __init__(self, size=None, method=False):
        if size:
            self.vocab_size = (lambda: size) if method else size

    def encode(self, text):
        return [ord(letter) for letter in text]


def letters(text):
    return [ord(letter) for letter in text]


def array(text):
    import numpy as np
    return np.frombuffer(text.encode(), np.uint8)


class Sized:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __call__(self, text):
        return letters(text)


def fails(text):
    return 1 / 0


class Known:
    letters = staticmethod(letters)


plain, said, method, wide, narrow = Letters(), Letters(300), Letters(300, True), Letters(70_000), Letters(100)
sized, exact, most = Sized(400), Letters(65_536), Letters(65_537)
number, name = 5, "utf-8"
words = str.split
floats = lambda text: [0.5] * len(text)
negative = lambda text: [3, -1] * len(text)
nothing = lambda text: []
nested = lambda text: [[1, 2]] * len(text)
huge = lambda text: [1 << 40] * len(text)
vocabulary_alone = Known()
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a text, and a module of tokenizers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tokens", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "a.txt").write_text(SENTENCE * 20, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\0\xff\r\n" * 10)
    (tmp_path / "my_tokens.py").write_text(TOKENIZERS, encoding="utf-8")
    return tmp_path


def refused(words, *given, **options):
    with pytest.raises(BadInput) as error:
        prepare_text(*given, **options)
    assert "\n" not in str(error.value)
    assert words in str(error.value), error.value


def test_bytes_are_what_they_are_and_files_are_joined_in_their_order(here):
    for order in (["a.txt", "b.txt"], ["b.txt", "a.txt"]):
        raw = b"".join((here / name).read_bytes() for name in order)
        path = prepare_text("text", order, "data/novels.h5")
        tokens = open_tokens(path, "novels")
        assert (tokens.name, tokens.vocabulary) == ("novels", 256)
        assert tokens.train.dtype == tokens.test.dtype == np.uint16
        assert tokens.train.astype(np.uint8).tobytes() + tokens.test.astype(np.uint8).tobytes() == raw
        # as nanoGPT's int(0.9 n)
        assert (len(tokens.train), len(tokens.test)) == (int(0.9 * len(raw)), len(raw) - int(0.9 * len(raw)))
        assert (tokens.train_bytes, tokens.test_bytes) == (len(tokens.train), len(tokens.test))
        assert isinstance(tokens.train.base, np.memmap) or isinstance(tokens.train, np.memmap)
    with h5py.File(path) as file:
        assert file.attrs["tokenizer"] == "bytes"
        assert len(file.attrs["checksum"]) == 32
    assert [found.name for found in (here / "data").iterdir()] == ["novels.h5"]


@pytest.mark.parametrize("validation", [0.5, 0.01, 0.25])
def test_the_share_to_test_on_is_the_texts_end(here, validation):
    raw = (here / "a.txt").read_bytes()
    tokens = open_tokens(prepare_text("text", ["a.txt"], "a.h5", validation=validation))
    assert abs(len(tokens.test) - validation * len(raw)) <= 1
    assert tokens.test.astype(np.uint8).tobytes() == raw[-len(tokens.test) :]


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [
        ("plain", ord("ü") + 1),
        ("said", 300),
        ("method", 300),
        ("sized", 400),
        ("letters", ord("ü") + 1),
        ("Known.letters", ord("ü") + 1),
        ("exact", 65_536),
        ("most", 65_537),
        ("wide", 70_000),
    ],
)
def test_a_tokenizer_of_ones_own(here, name, vocabulary):
    path = prepare_text("text", ["a.txt"], "a.h5", f"my_tokens:{name}")
    tokens, text = open_tokens(path), SENTENCE * 20
    assert tokens.vocabulary == vocabulary
    assert tokens.train.dtype == tokens.test.dtype == (np.uint16 if vocabulary <= 65_536 else np.uint32)
    parts = ["".join(map(chr, part)) for part in (tokens.train, tokens.test)]
    assert "".join(parts) == text
    assert len(parts[0]) == int(0.9 * len(text))
    # bytes of the text, not tokens: ö is one token and two bytes
    assert [tokens.train_bytes, tokens.test_bytes] == [len(part.encode()) for part in parts]
    assert tokens.test_bytes > len(tokens.test)
    with h5py.File(path) as file:
        assert file.attrs["tokenizer"] == f"my_tokens:{name}"


def test_a_tokenizer_may_give_an_array(here):
    by_bytes = open_tokens(prepare_text("text", ["a.txt"], "a.h5"))
    tokens = open_tokens(prepare_text("text", ["a.txt"], "b.h5", "my_tokens:array"))
    assert np.array_equal(np.concatenate([tokens.train, tokens.test]), np.concatenate([by_bytes.train, by_bytes.test]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_tokens", "right is MODULE:NAME, such as my_tokens:encode"),
        (":plain", "right is MODULE:NAME"),
        ("my_tokens:", "right is MODULE:NAME"),
        ("not_there:encode", "cannot be imported (ModuleNotFoundError: No module named 'not_there')"),
        ("my_tokens:other", "cannot be imported (AttributeError: module 'my_tokens' has no attribute 'other')"),
        ("my_tokens:number", "is of type int; right is a function from text to integers, or an object with encode"),
        ("my_tokens:name", "is of type str; right is"),
        ("my_tokens:Letters", "is of type type; right is"),
        ("my_tokens:fails", "fails on the text (ZeroDivisionError: division by zero)"),
        ("my_tokens:words", "right is a sequence of integers"),
        ("my_tokens:floats", "gives float64 (1170,) for 'Zwölf Boxkämpfer jag'...; right is a sequence of integers"),
        ("my_tokens:nested", "right is a sequence of integers"),
        ("my_tokens:negative", "gives the token -1; right are integers from 0 to 4,294,967,295"),
        ("my_tokens:huge", "gives the token 1099511627776; right are integers from 0"),
        ("my_tokens:narrow", "gives the token 252, and its vocabulary of 100 allows 0 to 99"),
        ("my_tokens:nothing", "too little text, of which the train part has 0 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_told_in_a_line(here, name, words):
    refused(words, "text", ["a.txt"], "a.h5", name)
    assert not (here / "a.h5").exists()


def test_a_text_that_is_none_is_told_in_a_line(here):
    (here / "empty.txt").touch()
    (here / "short.txt").write_text("four")
    (here / "a.gz").write_bytes(b"\x1f\x8bxxxx")
    for sources, words in (
        (None, "text: needs its files, python -m parle_hpc.data.prepare text --source FILE... --out data/NAME.h5"),
        (["a.txt", "no.txt"], "--source no.txt: no such file"),
        (["empty.txt"], "--source empty.txt: is empty"),
        (["."], "--source .: is a folder; give its files, such as ./*.txt"),
        (["/dev/null"], "--source /dev/null: is not a file"),
        (["a.gz"], "--source a.gz: is packed; unpack it first"),
        (["short.txt"], "--source short.txt: too little text, of which the test part has 1 tokens; give more"),
    ):
        refused(words, "text", sources, "data/a.h5")
    refused("is not UTF-8 at byte 1,", "text", ["b.txt"], "data/a.h5", "my_tokens:plain")
    refused("is the source itself", "text", ["a.txt", "b.txt"], "b.txt")
    for out in ("data/topics.h5", "mnist.h5"):
        refused(f"--out {out}: names the set, and {out[-9:-3].strip('/')}", "text", ["a.txt"], out)
    refused("--out a b.h5: names the set, by letters, digits", "text", ["a.txt"], "a b.h5")
    for share in (0, 1, -1, 2, float("nan")):
        refused(f"--validation {share:g}: must be between 0 and 1", "text", ["a.txt"], "a.h5", validation=share)
    # as one would make images
    for source, words in (("a.txt", "--source FILE..."), (None, "--source FILE... --out data/novels.h5")):
        with pytest.raises(BadInput, match=f"a text is made with python -m parle_hpc.data.prepare text {words}"):
            prepare("novels", source)
    assert not (here / "data").exists()


def test_the_built_in_text(here):
    tokens = open_tokens(prepare("topics"), "topics")
    assert (tokens.name, tokens.vocabulary) == ("topics", 256)
    assert len(tokens.train) > 100_000
    text = bytes(tokens.train.astype(np.uint8)) + bytes(tokens.test.astype(np.uint8))
    assert b'The "assert" statement' in text
    assert text.decode().isprintable() is False
    refused("topics comes with Python; leave --source out", "topics", ["a.txt"])


def test_a_text_that_is_written_over_is_said(here, capfd):
    prepare_text("text", ["a.txt"], "a.h5")
    prepare_text("text", ["a.txt"], "a.h5")
    assert capfd.readouterr().err == ""
    # the same bytes, divided at another place
    prepare_text("text", ["a.txt"], "a.h5", validation=0.2)
    assert "a: a.h5 held other data until now" in capfd.readouterr().err


def test_what_the_checksum_stands_for(here):
    (here / "c.txt").write_text(SENTENCE * 19 + SENTENCE.replace("Z", "z"), encoding="utf-8")
    ways = (
        ("a.txt", None, 0.1),
        ("a.txt", None, 0.2),
        ("c.txt", None, 0.1),
        ("a.txt", "plain", 0.1),
        ("a.txt", "said", 0.1),
    )
    found = [
        open_tokens(prepare_text("text", [name], "a.h5", tokenizer and f"my_tokens:{tokenizer}", share)).checksum
        for name, tokenizer, share in ways
    ]
    assert len(set(found)) == len(ways)
    assert all(len(checksum) == 16 for checksum in found)
    path = prepare_text("text", ["a.txt"], "a.h5")
    assert open_tokens(path, "a", found[0]).checksum == found[0]
    with pytest.raises(BadInput, match=f"holds another data set .checksum {found[0]}. than it should .0000."):
        open_tokens(path, "a", "0000")
    (here / "copy").write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["vocabulary"] = 257
    assert open_tokens(path).checksum != found[0]
    assert open_tokens("not/there.h5", "a", copy="copy").checksum == found[0]


ANEW = "prepare it anew with python -m parle_hpc.data.prepare text --source FILE --out damaged.h5"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (forget("test"), "data set 'test/tokens' is missing"),
        (forget("name"), "attribute 'name' is missing"),
        (forget("vocabulary"), "attribute 'vocabulary' is missing"),
        (forget("test_bytes"), "attribute 'test_bytes' must be a positive integer"),
        (attribute("vocabulary", "many"), "attribute 'vocabulary' must be a positive integer"),
        (attribute("vocabulary", 195), "train/tokens reach to 195; a vocabulary of 195 allows 0 to 194"),
        (attribute("name", 5), "attribute 'name' must be a text"),
        (put("test/tokens", np.zeros(0, np.uint16)), "test/tokens holds 0 tokens, and 2 are the least"),
        (put("test/tokens", np.zeros(1, np.uint16)), "test/tokens holds 1 tokens, and 2 are the least"),
        (put("test/tokens", np.zeros(9, np.int64)), "test/tokens must be uint16 or uint32, one row, contiguous; it is"),
        (
            put("test/tokens", np.zeros((9, 2), np.uint16)),
            "test/tokens must be uint16 or uint32, one row, contiguous; it is uint16 (9, 2)",
        ),
        (
            put("test/tokens", np.zeros(9, np.uint16), chunks=True),
            "test/tokens must be uint16 or uint32, one row, contiguous; it is chunked uint16 (9,)",
        ),
        (put("test/tokens", np.full(9, 256, np.uint32)), "test/tokens reach to 256; a vocabulary of 256 allows"),
        (link("test/tokens", h5py.SoftLink("/train/tokens")), "test/tokens lies elsewhere"),
        (external("test/tokens", np.uint16, (9,)), "test/tokens lies elsewhere"),
        (claim("test/tokens", np.uint16, (10**13,)), "test/tokens is truncated"),
    ],
)
def test_a_file_that_is_no_text_is_refused(here, change, words):
    prepare_text("text", ["a.txt"], "damaged.h5")
    with h5py.File("damaged.h5", "r+") as file:
        change(file)
    with pytest.raises(BadInput) as error:
        open_tokens("damaged.h5", "damaged")
    assert str(error.value).startswith(f"damaged.h5: {words}"), error.value
    assert str(error.value).endswith(f"; {ANEW}")


def test_a_file_that_is_not_there_or_another_is_told_the_command_that_makes_it(here, digits):
    prepare_text("text", ["a.txt"], "cells.h5")
    (here / "torn.h5").write_bytes((here / "cells.h5").read_bytes()[:900])
    make = "python -m parle_hpc.data.prepare"
    for path, name, words in (
        ("no.h5", "topics", f"no.h5: no such data file; make it with {make} topics --out no.h5"),
        ("novels.h5", "novels", f"make it from your own with {make} text --source FILE --out novels.h5"),
        ("cell.h5", "cell", "did you mean cells? else make it from your own"),
        (
            ".",
            "novels",
            f".: is a folder; give --data.path novels.h5, made with {make} text --source FILE --out novels.h5",
        ),
        ("torn.h5", "torn", f"; prepare it anew with {make} text --source FILE --out torn.h5"),
        (
            "a.txt",
            "novels",
            f"; convert it with {make} text --source a.txt --out data/novels.h5, and train with --data.name novels "
            "--data.path data/novels.h5",
        ),
        (
            "a.txt",
            "topics",
            f"; convert it with {make} text --source a.txt --out data/a.h5, and train with --data.name a ",
        ),
        ("cells.h5", "novels", "holds cells, not novels; give novels's file, or train with --data.name cells"),
        (
            digits,
            "digits",
            f"{digits} holds images, not the tokens of a text; give a text's file, or train with --task",
        ),
    ):
        with pytest.raises(BadInput) as error:
            open_tokens(path, name)
        assert words in str(error.value), error.value
    with pytest.raises(BadInput, match=r"holds the tokens of a text, not images; .*--task.name language"):
        open_dataset("cells.h5", "cells")


def test_the_command_line(here):
    def command(*arguments):
        return module("parle_hpc.data.prepare", *arguments, cwd=here)

    made = command("text", "--source", "a.txt", "b.txt", "--tokenizer", "my_tokens:plain", "--out", "data/a.h5")
    assert made.returncode == 2
    assert our_lines(made) == [
        "--source a.txt b.txt: is not UTF-8 at byte 1,381, which a tokenizer needs; convert it, or "
        "leave --tokenizer out"
    ]
    made = command("text", "--source", "a.txt", "--tokenizer", "my_tokens:plain", "--validation", "0.2")
    assert made.stdout.startswith("data/text.h5: 1,040 + 260 tokens of text, vocabulary 253, ")
    assert len(open_tokens("data/text.h5", "text").test) == 260


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--tokenizer", "a:b"], "--tokenizer a:b: belongs to text, not to digits; leave it out"),
        (["digits", "--validation", "0.5"], "--validation 0.5: belongs to text, not to digits; leave it out"),
        (["topics", "--channels", "first"], "--channels first: belongs to images, not to topics; leave it out"),
        (["mine", "--source", "a", "b"], "--source a b: mine is made from one file or folder; give that"),
    ],
)
def test_options_of_another_kind_are_refused(arguments, words):
    with pytest.raises(BadInput, match=words):
        from_command_line(arguments)
