"""The C++ tokenizer against the `tokenizers` library and the Python runtime: ids, offsets and words, all equal.

There is no list of exceptions: the C++ Unicode tables were asked of the library, version by version of Unicode.
EBCA_SLOW_TESTS=1 runs the large corpus and every code point, best with EBCA_CXXFLAGS="-O2", or with sanitizers:
EBCA_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all".
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import random
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from ebca.errors import EngineError, ParameterError
from ebca.runtime.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
CPP = ROOT / "runtime" / "cpp"
SOURCES = ["numerals", "platform/linux", "platform/posix", "contract/json", "contract/utf8"] + [
    f"tokenizer/{name}"
    for name in (
        *("unicode", "unicode_tables", "byte_pair_encoding", "tokenizer_json", "tokenizer", "weighted"),
        "prompt_tokenizer",
    )
]
SLOW = bool(os.environ.get("EBCA_SLOW_TESTS"))
INFO_KEYS = ("model_max_length", *(f"{name}_token{end}" for name in ("bos", "eos", "pad") for end in ("_id", "")))

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|" + PATTERN


class UnsupportedError(EngineError):
    """The library's own: Python reads all kinds of tokenizers."""


STATUS = {1: ParameterError, 2: EngineError, 6: UnsupportedError}

Pieces = tuple[list[int], list[tuple[int, int]], list[int]]  # ids, offsets in characters, numbers of words


# The probe: one process that answers for many texts.


class Probe:
    """A running tokenizer_probe. `ask` sends the fields of a question and returns those of the answer."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def close(self) -> None:
        self.stdin.close()
        assert self.process.wait(timeout=60) == 0
        self.stdout.close()

    def ask(self, *fields: str | bytes) -> list[bytes]:
        self._send(fields)
        return self._receive()

    def ask_all(self, questions: list[tuple[str | bytes, ...]]) -> list[list[bytes]]:
        """Questions and answers overlap; a pipe alone holds too little of either."""
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(lambda: [self._send(fields) for fields in questions])
            answers = [self._receive() for _ in questions]
            sent.result()
        return answers

    def _send(self, fields: tuple[str | bytes, ...]) -> None:
        parts = [field.encode() if isinstance(field, str) else field for field in fields]
        message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        self.stdin.write(len(parts).to_bytes(4, "little") + message)
        self.stdin.flush()

    def _receive(self) -> list[bytes]:
        fields = [self._read(self._number()) for _ in range(self._number())]
        if fields[0] == b"error":
            raise STATUS[int(fields[1])](fields[2].decode())
        return fields[1:]

    def _number(self) -> int:
        return int.from_bytes(self._read(4), "little")

    def _read(self, size: int) -> bytes:
        data = self.stdout.read(size)
        assert len(data) == size, f"the probe ended with {self.process.wait(timeout=60)}"
        return data


@dataclass
class Native:
    """The C++ functions with the results of the Python ones."""

    probe: Probe
    loaded: tuple[Any, ...] = ()

    def load(self, text: str | bytes, info: dict[str, Any]) -> None:
        numbers = [str(info[key]) for key in INFO_KEYS]
        if self.loaded == (text, *numbers):
            return
        self.loaded = ()
        self.probe.ask("load", text, *numbers)
        self.loaded = (text, *numbers)

    def pieces(self, texts: list[str]) -> list[Pieces]:
        answers = self.probe.ask_all([("pieces", text) for text in texts])
        return [self._pieces(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def encode(self, prompts: list[str]) -> tuple[list[int], list[str], list[list[str]]]:
        first, *rest = self.probe.ask("encode", *prompts)
        truncated, tokens = [], []
        while rest:
            truncated.append(rest[0].decode())
            count = int(rest[1])
            tokens.append([token.decode() for token in rest[2 : 2 + count]])
            rest = rest[2 + count :]
        return _numbers(first), truncated, tokens

    def find_words(self, prompt: str, words: list[str]) -> dict[str, list[int]]:
        answer = self.probe.ask("find_words", prompt, *words)
        return {word: _numbers(field) for word, field in zip(words, answer, strict=True)}

    @staticmethod
    def _pieces(text: str, answer: list[bytes]) -> Pieces:
        ids, starts, ends, words = map(_numbers, answer)
        character = {0: 0}
        position = 0
        for i, c in enumerate(text, start=1):
            position += len(c.encode())
            character[position] = i
        return ids, [(character[a], character[b]) for a, b in zip(starts, ends, strict=True)], words


def _numbers(field: bytes) -> list[int]:
    return [int(number) for number in field.split()]


@dataclass(frozen=True)
class Build:
    """Compiles into a folder, with the library's own sources there already."""

    folder: Path
    compiler: str

    def compile(self, source: Path, *options: str) -> Path:
        target = self.folder / f"{source.stem}.o"
        self._run(*options, *self.includes, "-c", str(source), "-o", str(target))
        return target

    def link(self, *objects: Path) -> Path:
        program = objects[0].with_suffix("")
        parts = [*(self.folder / f"{Path(name).name}.o" for name in SOURCES), *objects]
        self._run(*map(str, parts), "-o", str(program))
        return program

    def has_json(self) -> bool:
        look = [self.compiler, *self.includes, "-xc++", "-E", "-"]
        return not subprocess.run(look, input=b"#include <nlohmann/json.hpp>", capture_output=True).returncode

    @property
    def includes(self) -> list[str]:
        return [f"-I{CPP / 'src'}", *(f"-I{path}" for path in _json_folders())]

    def _run(self, *arguments: str) -> None:
        flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", *os.environ.get("EBCA_CXXFLAGS", "").split()]
        subprocess.run([self.compiler, *flags, *arguments], check=True)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or CXX)")
    build = Build(tmp_path_factory.mktemp("tokenizer"), compiler)
    if not build.has_json():
        pytest.skip(
            "no nlohmann/json.hpp: run runtime/cpp/fetch_headers.sh, or name its folder in EBCA_JSON_INCLUDE_DIR"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build.compile, [CPP / "src" / f"{name}.cpp" for name in SOURCES]))
    return build


@pytest.fixture(scope="module")
def program(build: Build) -> Path:
    return build.link(build.compile(Path(__file__).with_name("tokenizer_probe.cpp")))


def _json_folders() -> list[str]:
    fetched = CPP / "build" / "headers" / "json" / "usr" / "include"
    named = os.environ.get("EBCA_JSON_INCLUDE_DIR")
    return [named] if named else [str(fetched)] if fetched.is_dir() else []


@pytest.fixture(scope="module")
def native(program: Path) -> Iterator[Native]:
    probe = Probe(program)
    yield Native(probe)
    probe.close()


# Tokenizers: those of our engines, and real byte-pair encodings as CLIP checkpoints have them.


@dataclass(frozen=True)
class Case:
    text: str  # tokenizer.json
    info: dict[str, Any]

    @cached_property
    def library(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.text)

    @property
    def data(self) -> dict[str, Any]:
        """For a test to change."""
        return json.loads(self.text)


@pytest.fixture(scope="module")
def shapes_case() -> Case:
    folder = ROOT / "engines" / "bundled" / "shapes"
    info = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["tokenizer"]["info"]
    return Case((folder / "tokenizer.json").read_text(encoding="utf-8"), info)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """That of the built-in model when slow tests run. Its module loads PyTorch; the list of words is the difference."""
    pytest.importorskip("transformers")
    from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH, tokenizer_json
    from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer

    words = ["a", "and", "cat", "catalogue", "circle", "crown", "dog", "don", "lion", "red", "with"]
    if SLOW:
        from ebca.export.checkpoint.tiny import WORDS

        words = list(WORDS)
    return Case(*tokenizer_json(write_word_tokenizer(tmp_path_factory.mktemp("tiny"), words, CLIP_MAX_LENGTH)))


@pytest.fixture(scope="module")
def clip() -> Case:
    """As transformers 5 writes it: special tokens are found in the text as given, padding with the end token."""
    specials = [AddedToken(BOS, special=True, normalized=False), AddedToken(EOS, special=True, normalized=False)]
    return _trained(SPECIAL_PATTERN, specials, pad=EOS)


@pytest.fixture(scope="module")
def older_clip() -> Case:
    """As older files have it, special tokens found in the normalized text, padding with "!" as Stable Diffusion 2 does;
    and with tokens that a fine-tune added."""
    specials = [
        AddedToken(BOS, special=True, normalized=True),
        AddedToken(EOS, special=True, normalized=False),
        AddedToken("!", special=True, normalized=False),
        AddedToken("<cat-toy>", normalized=True),
        AddedToken("<cat-toy>_1", normalized=True),
        AddedToken("Blue  Étoile", normalized=True),
        AddedToken("S*", normalized=False),
    ]
    return _trained(PATTERN, specials, pad="!")


@pytest.fixture(scope="module")
def cases(shapes_case: Case, tiny: Case, clip: Case, older_clip: Case) -> list[Case]:
    return [shapes_case, tiny, clip, older_clip]


def _trained(pattern: str, added: list[AddedToken], pad: str) -> Case:
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=EOS))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    # Letters that few words end in have no entry of their own with </w>: those test the token for the unknown.
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS],
        show_progress=False,
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])]
    texts += [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("runtime/*.py"))]
    draw = random.Random(3)
    alphabets = ["абвгдежзик", "日本語中文字漢", "αβγδεζηθ", "가나다라마바", "éèüñçåø", "🦁🐱🎨👩"]
    for alphabet in alphabets:
        texts += [" ".join(_word(draw, alphabet) for _ in range(300))]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    bos, eos = (tokenizer.token_to_id(token) for token in (BOS, EOS))
    tokenizer.post_processor = processors.RobertaProcessing((EOS, eos), (BOS, bos), False, False)
    assert tokenizer.get_vocab_size() >= 4000
    special = {"bos": BOS, "eos": EOS, "pad": pad}
    tokens = {f"{name}_token": token for name, token in special.items()}
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in special.items()}
    return Case(tokenizer.to_str(), {"model_max_length": 77, **tokens, **ids})


def _word(draw: random.Random, alphabet: str) -> str:
    return "".join(draw.choices(alphabet, k=draw.randint(1, 6)))


# Texts: what prompts hold, and what Unicode does to them.

# fmt: off
PARTS = [
    "red", "circle", "a", "lion", "with", "crown", "CROWN", "Straße", "naïve", "don't", "it's", "we'LL", "'s", "'re",
    "'", "3.14", "16", "½", "Ⅷ", "٣", "1,000", "!", "...", "(", ")", "<|", "|>", "</w>", "S*", "s*",
    "<cat-toy>", "<CAT-toy>_1", "blue étoile", "BLUE\tE\u0301TOILE",
    BOS, EOS, BOS.upper(), EOS[:-1], "<|endof" + EOS, EOS + EOS,
    " ", "  ", "\t", "\n", "\r\n", "\x85", "\xa0", "\u3000", "\u2028", "\u200b", "\ufeff", "\x00", "\x1c", "\x7f",
    "İ", "ı", "ſ", "'ſ", "Σ", "ς", "ﬃ", "Ǆ", "ẞ", "\u212b", "\u2126", "é", "e\u0301", "q\u0323\u0307", "a\u0301\u0316",
    "가", "각", "\u1100", "\u1161", "\u11a8", "\u1100\u1161\u11a8", "가\u11a8", "\u0f73\u0334", "\u0344", "\u0958",
    "\ufb2a", "\u09fe", "你好", "日本", "ｆｕｌｌ", "🦁", "👩\u200d👩\u200d👧", "👍🏽", "❤️", "🇫🇷",
    "\U0001e900", "\U00031350", "\ue000", "\U0010ffff", "\ufffd", "\ufffe",
]
# fmt: on
MARKS = [chr(c) for c in range(0x40000) if unicodedata.combining(chr(c))]
DECOMPOSED = [chr(c) for c in range(0x40000) if unicodedata.decomposition(chr(c))]


def sample_text(draw: random.Random) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: draw.choice(PARTS),
        lambda: draw.choice(PARTS) + " ",
        lambda: chr(draw.randrange(0x80)),
        lambda: chr(draw.randrange(0x3000)),
        lambda: draw.choice(MARKS),
        lambda: draw.choice(DECOMPOSED),
        lambda: _character(draw),
    ]
    parts = draw.choices(
        kinds, weights=draw.choice([[9, 9, 3, 1, 1, 1, 1], [1, 1, 1, 3, 5, 3, 2]]), k=draw.randint(0, 24)
    )
    return "".join(part() for part in parts)


def _character(draw: random.Random) -> str:
    code_point = draw.randrange(0x110000 - 0x800)
    return chr(code_point if code_point < 0xD800 else code_point + 0x800)


def differences(native: Native, case: Case, texts: list[str]) -> list[tuple[str, Pieces, Pieces]]:
    native.load(case.text, case.info)
    library = case.library
    expected = [library.encode(text, add_special_tokens=False) for text in texts]
    results = zip(texts, native.pieces(texts), [(e.ids, e.offsets, e.word_ids) for e in expected], strict=True)
    return [(text, got, wanted) for text, got, wanted in results if got != wanted]


def test_ids_offsets_and_words_equal_the_library(native: Native, cases: list[Case]) -> None:
    draw = random.Random(1)
    for case in cases:
        texts = [sample_text(draw) for _ in range((100_000 if SLOW else 3000) // len(cases))]
        assert sum(map(len, texts)) > 10 * len(texts)
        assert differences(native, case, texts) == []


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=12).map("".join), max_size=8))
def test_any_text_gives_the_ids_of_the_library(native: Native, older_clip: Case, texts: list[str]) -> None:
    assert differences(native, older_clip, texts) == []


@pytest.mark.skipif(not SLOW, reason="takes minutes: set EBCA_SLOW_TESTS=1")
def test_every_character_is_treated_as_the_library_does(native: Native, clip: Case) -> None:
    texts = []
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            texts.append(f"a{chr(c)}b{chr(c)}\u0334\u0301 1{chr(c)}\u0316\u0345e{chr(c)}")
    assert differences(native, clip, texts) == []


@pytest.mark.skipif(not SLOW, reason="takes minutes: set EBCA_SLOW_TESTS=1")
def test_every_pair_that_could_compose_is_treated_as_the_library_does(native: Native, clip: Case) -> None:
    pairs = [unicodedata.decomposition(c).split() for c in DECOMPOSED]
    halves = [(chr(int(p[0], 16)), chr(int(p[1], 16))) for p in pairs if len(p) == 2 and not p[0].startswith("<")]
    left = sorted({a for a, _ in halves} | {"\u1100", "가", "각"})
    right = sorted({b for _, b in halves} | set(MARKS) | {"\u1161", "\u11a7", "\u11a8"})
    assert len(left) > 300 and len(right) > 800
    assert differences(native, clip, ["".join(a + b + " " for b in right) for a in left]) == []


def test_the_unicode_tables_are_what_the_generator_writes() -> None:
    path = CPP / "tools" / "generate_unicode_tables.py"
    spec = importlib.util.spec_from_file_location("generate_unicode_tables", path)
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    committed = (CPP / "src" / "tokenizer" / "unicode_tables.cpp").read_text(encoding="utf-8")
    if f"tokenizers {tokenizers.__version__} knows" not in committed:
        pytest.skip(f"the tables are those of another version than tokenizers {tokenizers.__version__}")
    assert generator.render() == committed


# Long texts


@pytest.mark.parametrize(
    "part",
    ["a", "red circle ", "abcdefghij", "1", "!", " ", "e\u0301", "\u0316\u0301", "각", EOS, "<", "日本", "🦁"],
    ids=ascii,
)
def test_time_is_linear_in_the_text(native: Native, clip: Case, part: str) -> None:
    """One megabyte each when slow tests run. In quadratic time even a small part of it takes longer."""
    text = part * ((1_000_000 if SLOW else 40_000) // len(part.encode()))
    native.load(clip.text, clip.info)
    start = time.monotonic()
    [got] = native.pieces([text])
    assert time.monotonic() - start < (30 if SLOW else 5)
    expected = clip.library.encode(text, add_special_tokens=False)
    assert got == (expected.ids, expected.offsets, expected.word_ids)


# Prompts: the functions of runtime/text/tokenizer.py


def test_rows_equal_those_of_python(native: Native, cases: list[Case]) -> None:
    draw = random.Random(2)
    for case in cases:
        python = Tokenizer.from_json(case.text, case.info)
        native.load(case.text, case.info)
        prompts = ["", "a cat", "cat " * 75, "cat " * 75 + "Dog\tand LIÓN", *(sample_text(draw) for _ in range(100))]
        prompts += ["".join(sample_text(draw) for _ in range(8)) for _ in range(50)]
        expected = python.encode(prompts)
        assert any(expected.truncated) and not all(expected.truncated)
        assert native.encode(prompts) == (expected.ids.ravel().tolist(), expected.truncated, expected.tokens)
    assert native.encode([]) == ([], [], [])


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except ParameterError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    "prompt, word",
    [
        ("A Cat and a dog, a CAT with a crown", "cat"),
        ("A Cat and a dog, a CAT with a crown", "with  a CROWN"),
        ("red red red", "red red"),
        ("a catalogue", "cat"),
        ("a wildcat", "cat"),
        ("a cat", ""),
        ("a cat", "  \n"),
        ("a cat's\ttail 'n' \x01 more", "dragon's"),
        ("", "cat"),
        ("cat " * 74 + "red lion", "red"),
        ("cat " * 74 + "red lion", "lion"),
        ("cat " * 74 + "red lion", "red lion"),
        ("cafe\u0301 noir", "CAFÉ"),
        (f"a {EOS} b", EOS),
    ],
)
def test_words_are_found_as_in_python(native: Native, cases: list[Case], prompt: str, word: str) -> None:
    """Positions, or the same message."""
    for case in cases:
        python = Tokenizer.from_json(case.text, case.info)
        native.load(case.text, case.info)
        expected = _outcome(lambda python=python: python.find_words(prompt, [word]))
        assert _outcome(lambda: native.find_words(prompt, [word])) == expected


def test_several_words_at_once(native: Native, tiny: Case) -> None:
    native.load(tiny.text, tiny.info)
    assert native.find_words("a cat and a dog", ["cat", "a"]) == {"cat": [2], "a": [1, 4]}
    assert native.find_words("a cat", []) == {}


@pytest.mark.parametrize(
    "text, position",
    [
        (b"\xff", 0),
        (b"abc\xc3", 3),
        (b"\xc0\x80", 0),
        (b"a\xe0\x80\x80", 1),
        (b"\xed\xa0\x80", 0),
        (b"\xf4\x90\x80\x80", 0),
        (b"ok \xf0\x9f\xa6 red", 3),
        (b"\x80", 0),
    ],
)
def test_text_that_is_not_utf8_is_refused(native: Native, clip: Case, text: bytes, position: int) -> None:
    with pytest.raises(UnicodeDecodeError):
        text.decode()
    native.load(clip.text, clip.info)
    for command in ("pieces", "encode", "find_words"):
        with pytest.raises(ParameterError, match=f"not valid UTF-8 at byte {position}"):
            native.probe.ask(command, text, b"red")
    with pytest.raises(ParameterError, match=f"not valid UTF-8 at byte {position}"):
        native.probe.ask("find_words", b"red", text)


# Tokenizer files


def test_pairs_and_strings_are_the_same_merges(native: Native, clip: Case) -> None:
    data = clip.data
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    assert differences(native, Case(json.dumps(data), clip.info), ["a lion with a crown", "don't"]) == []


VARIANTS: list[Callable[[dict[str, Any]], Any]] = [
    lambda data: data.update(normalizer=None),
    lambda data: data.update(normalizer={"type": "Lowercase"}),
    lambda data: data["normalizer"]["normalizers"].reverse(),
    lambda data: data["pre_tokenizer"]["pretokenizers"][1].update(use_regex=False),
    lambda data: data["pre_tokenizer"]["pretokenizers"][1].pop("use_regex"),
    lambda data: data.update(post_processor=None, decoder=None, truncation=None, padding=None, added_tokens=[]),
    lambda data: data["model"].update(end_of_word_suffix=None),
    lambda data: data["model"].update(end_of_word_suffix="", merges=[]),
    lambda data: data["model"].update(dropout=0.0, continuing_subword_prefix=None),
    lambda data: data["model"]["merges"].reverse(),
    lambda data: data["model"]["merges"].extend(data["model"]["merges"][:50]),
    lambda data: data["added_tokens"].append(_added(data, "Two  Words", normalized=True)),
    lambda data: data["added_tokens"].append(_added(data, "Two  Words", normalized=False)),
    lambda data: data["model"]["vocab"].update({"odd": 4_294_967_295}),
]


def _added(data: dict[str, Any], content: str, **settings: bool) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": len(data["model"]["vocab"]), "content": content, **off, **settings}


@pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
def test_settings_are_read_from_the_file(
    native: Native, shapes_case: Case, variant: Callable[[dict[str, Any]], Any]
) -> None:
    data = shapes_case.data
    variant(data)
    draw = random.Random(4)
    texts = ["two words TWO \t words", *(sample_text(draw) for _ in range(150))]
    assert differences(native, Case(json.dumps(data), shapes_case.info), texts) == []


REFUSED: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ('version is "2.0"', lambda data: data.update(version="2.0")),
    ('normalizer is "NFKC"', lambda data: data.update(normalizer={"type": "NFKC"})),
    (r"Replace of \\s\+", lambda data: data["normalizer"]["normalizers"][1]["pattern"].update(Regex="a")),
    ("'Regex' is missing", lambda data: data["normalizer"]["normalizers"][1].update(pattern={"String": " "})),
    ('content is "_"', lambda data: data["normalizer"]["normalizers"][1].update(content="_")),
    ('normalizer is "Sequence"', lambda data: data["normalizer"]["normalizers"].append({"type": "Sequence"})),
    ('pre_tokenizer is ""', lambda data: data.update(pre_tokenizer=None)),
    ('pre_tokenizer is "Whitespace"', lambda data: data.update(pre_tokenizer={"type": "Whitespace"})),
    ("pre_tokenizer.pattern", lambda data: data["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+")),
    ('behavior is "Isolated"', lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(behavior="Isolated")),
    ("invert is false", lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(invert=False)),
    ("add_prefix_space is true", lambda data: data["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
    ('post_processor is "ByteLevel"', lambda data: data.update(post_processor={"type": "ByteLevel"})),
    ('model is "WordLevel"', lambda data: data["model"].update(type="WordLevel")),
    ("model is number", lambda data: data.update(model=3)),
    ("'model' is missing", lambda data: data.pop("model")),
    ("'vocab' is missing", lambda data: data["model"].pop("vocab")),
    ("vocab is array", lambda data: data["model"].update(vocab=[])),
    ("no entry 'Ā'", lambda data: (data["model"].update(vocab={}, merges=[]), data.update(added_tokens=[]))),
    ("id of 'a' is -1", lambda data: data["model"]["vocab"].update(a=-1)),
    ("id of 'a' is 4294967296", lambda data: data["model"]["vocab"].update(a=2**32)),
    ("id of 'a' is 18446744073709551615", lambda data: data["model"]["vocab"].update(a=2**64 - 1)),
    ("id of 'a' is number", lambda data: data["model"]["vocab"].update(a=1.5)),
    ("id of 'a' is string", lambda data: data["model"]["vocab"].update(a="1")),
    ("merges 'no such'", lambda data: data["model"]["merges"].append(["no such", "a"])),
    ("merges 'a</w>a'", lambda data: data["model"]["merges"].append(["a</w>", "a"])),
    ('merge "abc" is no pair', lambda data: data["model"]["merges"].append("abc")),
    ('merge "a b c" is no pair', lambda data: data["model"]["merges"].append("a b c")),
    ("merge is array", lambda data: data["model"]["merges"].append(["a"])),
    ("part of a merge is number", lambda data: data["model"]["merges"].append(["a", 1])),
    ("merges is object", lambda data: data["model"].update(merges={})),
    ("dropout is 0.1", lambda data: data["model"].update(dropout=0.1)),
    ('continuing_subword_prefix is "##"', lambda data: data["model"].update(continuing_subword_prefix="##")),
    ("fuse_unk is true", lambda data: data["model"].update(fuse_unk=True)),
    ("byte_fallback is true", lambda data: data["model"].update(byte_fallback=True)),
    ("ignore_merges is true", lambda data: data["model"].update(ignore_merges=True)),
    ("unk_token is array", lambda data: data["model"].update(unk_token=[])),
    ("no entry 'Ġ'", lambda data: (data["model"].update(unk_token=None), data["model"]["vocab"].pop("Ġ"))),
    ("'dog'.lstrip is true", lambda data: data["added_tokens"].append(_added(data, "dog", lstrip=True))),
    ("'dog'.single_word is true", lambda data: data["added_tokens"].append(_added(data, "dog", single_word=True))),
    (
        "'dog' has id 99999, but by the vocabulary it is 587",
        lambda data: data["added_tokens"].append({**_added(data, "dog"), "id": 99999}),
    ),
    ("added_tokens is string", lambda data: data.update(added_tokens="none")),
    ("content of an added token is null", lambda data: data["added_tokens"].append({"content": None})),
    ("twice", lambda data: data["added_tokens"].append(data["added_tokens"][0])),
]


@pytest.mark.parametrize("message, change", REFUSED, ids=[message for message, _ in REFUSED])
def test_what_clip_tokenizers_do_not_have_is_refused(
    native: Native, shapes_case: Case, message: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    data = shapes_case.data
    change(data)
    with pytest.raises(EngineError, match=message):
        native.load(json.dumps(data), shapes_case.info)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b"\x00",
    ],
    ids=range(11),
)
def test_bytes_that_are_not_a_tokenizer_are_refused(native: Native, shapes_case: Case, text: bytes) -> None:
    with pytest.raises(EngineError, match="tokenizer"):
        native.load(text, shapes_case.info)


@pytest.mark.parametrize("length", [-1, 0, 2, 10_001, 2**62])
def test_an_impossible_length_is_refused(native: Native, shapes_case: Case, length: int) -> None:
    with pytest.raises(EngineError, match=f"model_max_length is {length}"):
        native.load(shapes_case.text, {**shapes_case.info, "model_max_length": length})


@pytest.mark.parametrize("name", ["bos", "eos", "pad"])
def test_special_tokens_are_those_of_the_vocabulary(native: Native, shapes_case: Case, name: str) -> None:
    info = shapes_case.info
    token, right = info[f"{name}_token"], info[f"{name}_token_id"]
    for change in ({f"{name}_token_id": 0}, {f"{name}_token_id": right + 1}, {f"{name}_token": "<none>"}):
        with pytest.raises(EngineError) as theirs:
            Tokenizer.from_json(shapes_case.text, {**info, **change})
        with pytest.raises(EngineError) as mine:
            native.load(shapes_case.text, {**info, **change})
        assert str(mine.value).endswith(str(theirs.value)), token
    # An entry of the vocabulary that is no added token.
    native.load(shapes_case.text, {**info, f"{name}_token": "a</w>", f"{name}_token_id": 320})


def test_the_shortest_length_has_room_for_one_token(native: Native, shapes_case: Case) -> None:
    info = {**shapes_case.info, "model_max_length": 3}
    native.load(shapes_case.text, info)
    expected = Tokenizer.from_json(shapes_case.text, info).encode(["red circle"])
    assert native.encode(["red circle"]) == (expected.ids.ravel().tolist(), ["circle"], expected.tokens)


def test_a_damaged_file_is_refused_or_gives_the_ids_of_the_library(native: Native, shapes_case: Case) -> None:
    """Random changes anywhere in the file; never a crash. The library refuses more: it reads all parts."""
    draw = random.Random(5)
    junk = [None, True, False, -1, 0, 1, 2**31, 2**40, 0.5, "", "a", "BPE", "\0", [], {}, [[]], {"type": "NFC"}]
    texts = ["a red circle", f"it's {EOS} 16 É\u0301", "  \x00"]
    equal = refused = 0
    for _ in range(10_000 if SLOW else 400):
        data = shapes_case.data
        for _ in range(draw.randint(1, 3)):
            _damage(draw, data, junk)
        case = Case(json.dumps(data), shapes_case.info)
        try:
            native.load(case.text, case.info)
        except EngineError:
            refused += 1
            continue
        try:
            _ = case.library
        except Exception:  # the library raises nothing narrower
            continue
        assert differences(native, case, texts) == [], case.text
        equal += 1
    assert equal > 20 and refused > 20


def _damage(draw: random.Random, data: Any, junk: list[Any]) -> None:
    """Changes, removes or doubles one value somewhere in nested dicts and lists."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(data[key], dict | list) and draw.random() < 0.8:
            data = data[key]
            continue
        action = draw.randrange(4)
        if action == 0:
            del data[key]
        elif action == 1 and isinstance(data, list):
            data.insert(draw.randrange(len(data)), copy.deepcopy(data[key]))
        else:
            data[key] = copy.deepcopy(draw.choice(junk))
        return


def test_a_truncated_file_is_refused(native: Native, shapes_case: Case) -> None:
    text = shapes_case.text.rstrip().encode()
    for size in range(0, len(text) - 1, 97):
        with pytest.raises(EngineError, match="not valid `tokenizers` JSON"):
            native.load(text[:size], shapes_case.info)


def test_the_fuzz_target_replays_inputs(build: Build, shapes_case: Case, tmp_path: Path) -> None:
    target, main = (build.compile(CPP / "fuzz" / f"{name}.cpp") for name in ("fuzz_tokenizer", "standalone"))
    program = build.link(target, main)
    draw = random.Random(6)
    inputs = [b"", b"\0", b"{}\0a", shapes_case.text.encode()]
    inputs += [shapes_case.text.encode() + b"\0" + sample_text(draw).encode() for _ in range(20)]
    inputs += [shapes_case.text.encode() + b"\0" + draw.randbytes(20) for _ in range(20)]
    for i, data in enumerate(inputs):
        (tmp_path / str(i)).write_bytes(data)
    seeds = sorted((CPP / "fuzz" / "seeds" / "tokenizer").iterdir())
    subprocess.run([program, "-seconds=1", *sorted(tmp_path.iterdir()), *seeds], check=True, cwd=tmp_path.parent)
