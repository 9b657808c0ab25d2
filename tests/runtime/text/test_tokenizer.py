"""The tokenizer against transformers, and the search for words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizerFast

from ebca.errors import EngineError, ParameterError
from ebca.export.checkpoint.tiny import WORDS, save_tiny
from ebca.export.checkpoint.tokenizer import tokenizer_json
from ebca.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny")) / "tokenizer"


@pytest.fixture(scope="module")
def reference(folder: Path) -> CLIPTokenizerFast:
    return CLIPTokenizerFast.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_json(*tokenizer_json(folder))


def reference_ids(reference: Any, prompts: list[str]) -> np.ndarray:
    rows = reference(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    return np.array(rows, np.int64)


texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)), max_size=90).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_ids_equal_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert np.array_equal(tokenizer.encode([text]).ids, reference_ids(reference, [text]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "A LION, with a Crown!",
        "it's the king's  cat\n\tdon't",
        "café 日本 🦁 ｆｕｌｌ",
        "a<|endoftext|>b",
        "3.14",
    ],
)
def test_corner_texts_equal_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert np.array_equal(tokenizer.encode([text]).ids, reference_ids(reference, [text]))


def test_batch_has_one_row_per_prompt(tokenizer: Tokenizer, reference: Any) -> None:
    prompts = ["a cat", "", "a lion with a crown"]
    encoded = tokenizer.encode(prompts)
    assert encoded.ids.shape == (3, 77)
    assert encoded.ids.dtype == np.int64
    assert np.array_equal(encoded.ids, reference_ids(reference, prompts))
    assert encoded.tokens[0] == ["<|startoftext|>", "a</w>", "cat</w>", "<|endoftext|>"]
    assert encoded.tokens[1] == ["<|startoftext|>", "<|endoftext|>"]
    assert encoded.truncated == ["", "", ""]
    assert tokenizer.encode([]).ids.shape == (0, 77)


def test_text_beyond_the_limit_is_reported(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["cat " * 75, "cat " * 75 + "Dog and LION"])
    assert encoded.truncated == ["", "Dog and LION"]
    assert len(encoded.tokens[1]) == 77
    assert encoded.ids[1, 76] == tokenizer.eos_id


def test_all_occurrences_of_a_word_are_found(tokenizer: Tokenizer) -> None:
    found = tokenizer.find_words("A Cat and a dog, a CAT with a crown", ["cat", "a dog", "with  a CROWN", "a"])
    assert found == {"cat": [2, 8], "a dog": [4, 5], "with  a CROWN": [9, 10, 11], "a": [1, 4, 7, 10]}


def test_a_word_of_several_tokens_gives_all_positions(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a catalogue"])
    pieces = len(encoded.tokens[0]) - 3
    assert pieces > 1
    assert tokenizer.find_words("a catalogue", ["catalogue"]) == {"catalogue": list(range(2, 2 + pieces))}


@pytest.mark.parametrize("prompt", ["a catalogue", "a wildcat", "a tomcats"])
def test_parts_of_words_are_not_found(tokenizer: Tokenizer, prompt: str) -> None:
    with pytest.raises(ParameterError, match="'cat' is not in the prompt"):
        tokenizer.find_words(prompt, ["cat"])


def test_overlapping_occurrences_give_each_position_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.find_words("red red red", ["red red"]) == {"red red": [1, 2, 3]}


def test_the_error_about_a_missing_word_lists_the_tokens_of_the_prompt(tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterError, match=r"'dragon' is not in the prompt; .*1 'A', 2 'Cat', 3 'and', 4 'dog'"):
        tokenizer.find_words("A Cat and dog", ["cat", "dragon"])


def test_a_word_beyond_the_limit_is_refused(tokenizer: Tokenizer) -> None:
    long = "cat " * 74 + "red lion"
    assert tokenizer.find_words(long, ["red"]) == {"red": [75]}
    for word in ("lion", "red lion"):
        with pytest.raises(ParameterError, match="only beyond the first 75 tokens"):
            tokenizer.find_words(long, [word])


@pytest.mark.parametrize("word", ["", "  \n"])
def test_an_empty_word_is_refused(tokenizer: Tokenizer, word: str) -> None:
    with pytest.raises(ParameterError, match="has no tokens"):
        tokenizer.find_words("a cat", [word])


def test_wrong_argument_types_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterError, match="prompts is one string; put it in a list"):
        tokenizer.encode("a cat")
    with pytest.raises(ParameterError, match="put it in a list"):
        tokenizer.find_words("a cat", "cat")
    with pytest.raises(ParameterError, match="a prompt is of type int; give a string"):
        tokenizer.encode([3])  # type: ignore[list-item]
    with pytest.raises(ParameterError, match="not valid Unicode"):
        tokenizer.encode(["\ud800"])


def test_broken_files_are_refused(tmp_path: Path, folder: Path) -> None:
    text, info = tokenizer_json(folder)
    with pytest.raises(EngineError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path / "absent.json", info)
    broken = tmp_path / "tokenizer.json"
    broken.write_text(text[:100], encoding="utf-8")
    with pytest.raises(EngineError, match="not valid `tokenizers` JSON"):
        Tokenizer.load(broken, info)
    broken.write_bytes(b"\xff")
    with pytest.raises(EngineError, match="is not UTF-8"):
        Tokenizer.load(broken, info)
    for length in (2, 10_001, 77.0, True, None):
        with pytest.raises(EngineError, match=f"model_max_length is {length} instead of 3 to 10000"):
            Tokenizer.from_json(text, {**info, "model_max_length": length})


def test_special_tokens_are_those_of_the_vocabulary(folder: Path) -> None:
    text, info = tokenizer_json(folder)
    for name in ("bos", "eos", "pad"):
        token, right = info[f"{name}_token"], info[f"{name}_token_id"]
        for wrong in (right + 1, 0, None, float(right), True):
            expected = f"gives {name}_token {token!r} the id {wrong}, and the vocabulary says {right}; copy"
            with pytest.raises(EngineError, match=re.escape(expected)):
                Tokenizer.from_json(text, {**info, f"{name}_token_id": wrong})
        for absent in ("<none>", None):
            with pytest.raises(EngineError, match="the vocabulary says that there is no such token"):
                Tokenizer.from_json(text, {**info, f"{name}_token": absent})


def test_load_reads_the_file_of_the_export(tmp_path: Path, folder: Path) -> None:
    text, info = tokenizer_json(folder)
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    assert Tokenizer.load(path, info).find_words("a cat", ["cat"]) == {"cat": [2]}
