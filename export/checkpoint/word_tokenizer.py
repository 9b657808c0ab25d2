"""A small CLIP tokenizer that has one token for each word of a list, for models that train on few words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ebca.export.checkpoint.tokenizer import BOS, EOS


def write_word_tokenizer(folder: str | Path, words: Sequence[str], max_length: int, *, pad_token: str = EOS) -> Path:
    """Write a tokenizer folder as transformers' CLIPTokenizer reads it; other words are split into letters.

    Args:
        folder: is made if it does not exist.
        words: in lower case; each becomes one token.
        max_length: of a prompt, including the start and the end token.
        pad_token: what fills prompts up.
    """
    vocabulary, merges = word_vocabulary(words)
    return write_tokenizer(folder, vocabulary, merges, max_length, pad_token=pad_token)


def write_tokenizer(
    folder: str | Path,
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    max_length: int,
    *,
    pad_token: str = EOS,
) -> Path:
    """Write a tokenizer folder of a vocabulary and its merges, the first of which applies first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad_token, "unk_token": EOS}
    _write_json(folder / "special_tokens_map.json", special)
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", {**facts, **special})
    return folder


def word_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges, in CLIP's order: byte symbols, those that end a word, merges, start token, end token."""
    merges = _merges(words)
    return vocabulary_of(merges), merges


def vocabulary_of(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Token ids in CLIP's order, for merges in the order of their ranks."""
    symbols = _byte_symbols()
    entries = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges), BOS, EOS]
    return {entry: index for index, entry in enumerate(entries)}


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that make one token of each word.

    An earlier merge always applies first, so that a later one cannot split an earlier word.
    """
    rank: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _apply(rank, [*word[:-1], word[-1] + "</w>"])
        while len(pieces) > 1:
            rank[(pieces[0], pieces[1])] = len(rank)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(rank)


def _apply(rank: dict[tuple[str, str], int], pieces: list[str]) -> list[str]:
    """Byte-pair encoding: always merge the pair of lowest rank."""
    while True:
        ranked = [(rank[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in rank]
        if not ranked:
            return pieces
        _, i = min(ranked)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


def _byte_symbols() -> list[str]:
    """A printable character per byte in CLIP's order: printable bytes first, as themselves."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
