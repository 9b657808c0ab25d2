"""CLIP's own tokenizer, which every model of Stable Diffusion 1.x and 2.x was trained with.

`vocabulary/clip_merges.txt.xz` holds the 48,894 merges that CLIP uses, a line each, of OpenAI's
bpe_simple_vocab_16e6.txt. Its licence (MIT) lies beside it.
"""

from __future__ import annotations

import lzma
import tempfile
from functools import cache
from importlib import resources
from typing import Any

from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH, tokenizer_json
from ebca.export.checkpoint.word_tokenizer import vocabulary_of, write_tokenizer

_FILE = "clip_merges.txt.xz"


def clip_tokenizer(pad_token: str) -> tuple[str, dict[str, Any]]:
    """JSON text and facts, as `tokenizer_json` returns them.

    Args:
        pad_token: what fills prompts up, "!" (id 0) in Stable Diffusion 2.x. In a prompt it stays a token like others.
    """
    text, info, vocabulary = _tokenizer()
    return text, {**info, "pad_token": pad_token, "pad_token_id": vocabulary[pad_token]}


def clip_merges() -> list[tuple[str, str]]:
    """Pairs of pieces that become one, the first of which applies first."""
    packed = resources.files("ebca.export.checkpoint").joinpath("vocabulary", _FILE).read_bytes()
    lines = lzma.decompress(packed).decode("utf-8").splitlines()
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


@cache
def _tokenizer() -> tuple[str, dict[str, Any], dict[str, int]]:
    merges = clip_merges()
    vocabulary = vocabulary_of(merges)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder, vocabulary, merges, CLIP_MAX_LENGTH)
        text, info = tokenizer_json(folder)
    return text, info, vocabulary
