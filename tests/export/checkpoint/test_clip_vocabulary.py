"""The vocabulary of CLIP that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizerFast

from ebca.export.checkpoint.clip_vocabulary import clip_merges, clip_tokenizer
from ebca.export.checkpoint.word_tokenizer import vocabulary_of, write_tokenizer

TEXTS = (
    "",
    "a photo of a cat",
    "A Photo of a CAT!!! (masterpiece:1.3), don't -- 8k, 1920x1080",
    "naïve café, Ærøskøbing, 日本の猫, привет, 🐱🐶",
    "  spaces \t and\nlines  ",
    "<|endoftext|> supercalifragilisticexpialidocious's",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(clip_tokenizer("<|endoftext|>")[0])


def test_ids_are_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    merges = clip_merges()
    reference = CLIPTokenizerFast.from_pretrained(str(write_tokenizer(tmp_path, vocabulary_of(merges), merges, 77)))
    for text in TEXTS:
        assert tokenizer.encode(text).ids == reference(text).input_ids


def test_ids_are_those_of_clip(tokenizer: Tokenizer) -> None:
    """As published: "a photo of a cat" is 320 1125 539 320 2368, and 49,408 tokens in all."""
    assert tokenizer.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.get_vocab_size() == 49408


def test_padding_of_both_generations(tokenizer: Tokenizer) -> None:
    one, two = clip_tokenizer("<|endoftext|>"), clip_tokenizer("!")
    assert (one[1]["pad_token_id"], two[1]["pad_token_id"]) == (49407, 0)
    assert one[0] == two[0]
    # In a prompt, the mark that ends a word, not the padding.
    assert tokenizer.encode("cat!").ids[2] == 256
