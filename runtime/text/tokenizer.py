"""Prompts to token ids, from the `tokenizers` JSON that the export wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as _Backend

from ebca.errors import EngineError, ParameterError

_INFO_KEYS = ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Encoded:
    """Token ids of n prompts, and what did not fit."""

    ids: NDArray[np.int64]  # [n, T], T = model_max_length
    truncated: list[str]  # per prompt: the text behind the last token that fitted, "" if all of it did
    tokens: list[list[str]]  # per prompt: vocabulary entries from bos to eos, padding left out; index = position


class Tokenizer:
    """CLIP byte-pair encoding with start token, end token and padding. Safe to share between threads."""

    def __init__(self, backend: _Backend, info: Mapping[str, Any]) -> None:
        missing = [key for key in _INFO_KEYS if not isinstance(info.get(key), int)]
        if missing:
            raise EngineError(f"tokenizer information lacks the number(s) {', '.join(missing)}", "export again")
        self.max_length = int(info["model_max_length"])
        if self.max_length < 3:
            raise EngineError(f"tokenizer model_max_length is {self.max_length}", "at least 3 is needed")
        self.bos_id = int(info["bos_token_id"])
        self.eos_id = int(info["eos_token_id"])
        self.pad_id = int(info["pad_token_id"])
        # A tokenizer.json may carry its maker's own limits, which would cut text without telling.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

    @classmethod
    def load(cls, path: str | Path, info: Mapping[str, Any]) -> Tokenizer:
        """Read the JSON file at `path`; `info` holds model_max_length and the bos, eos and pad token ids."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"cannot read the tokenizer {path}: {error}", "export again") from error
        return cls.from_json(text, info)

    @classmethod
    def from_json(cls, text: str, info: Mapping[str, Any]) -> Tokenizer:
        """Like `load`, from the JSON text itself."""
        try:
            backend = _Backend.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"the tokenizer is not valid `tokenizers` JSON: {error}", "export again") from error
        return cls(backend, info)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encode each prompt as bos, at most T - 2 tokens, eos, padding."""
        if isinstance(prompts, str):
            raise ParameterError("prompts must be a sequence of strings, not one string", "put it in a list")
        ids = np.full((len(prompts), self.max_length), self.pad_id, np.int64)  # [n, T]
        truncated: list[str] = []
        tokens: list[list[str]] = []
        for row, prompt in enumerate(prompts):
            encoding = self._pieces(prompt)
            kept = [self.bos_id, *encoding.ids[: self._room], self.eos_id]
            ids[row, : len(kept)] = kept
            truncated.append(self._dropped(prompt, encoding))
            tokens.append([self._entry(index) for index in kept])
        return Encoded(ids, truncated, tokens)

    def find_words(self, prompt: str, words: Sequence[str]) -> dict[str, list[int]]:
        """Positions (bos is 0) of every token of each word or phrase, for all its occurrences in the prompt.

        Whole words only ("cat" is not in "catalogue"); case and spacing do not count.
        """
        if isinstance(words, str):
            raise ParameterError(f"words must be a sequence of strings, not the string {words!r}", "put it in a list")
        encoding = self._pieces(prompt)
        return {word: self._find(prompt, encoding, word) for word in words}

    @property
    def _room(self) -> int:
        return self.max_length - 2

    def _pieces(self, text: str) -> Encoding:
        if not isinstance(text, str):
            raise ParameterError(f"a prompt must be a string, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ParameterError(f"the prompt {text!r} is not valid Unicode text: {error.reason}") from error
        return self._backend.encode(text, add_special_tokens=False)

    def _entry(self, index: int) -> str:
        return self._backend.id_to_token(index) or f"#{index}"

    def _dropped(self, prompt: str, encoding: Encoding) -> str:
        if len(encoding.ids) <= self._room:
            return ""
        return prompt[encoding.offsets[self._room][0] :]

    def _find(self, prompt: str, encoding: Encoding, word: str) -> list[int]:
        needle = self._pieces(word).ids
        if not needle:
            raise ParameterError(f"the word {word!r} has no tokens", "give a word or phrase of the prompt")
        starts = _occurrences(encoding, needle)
        # An occurrence cut by the length limit is no longer the word that was asked for.
        kept = [start for start in starts if start + len(needle) <= self._room]
        if not kept:
            raise ParameterError(self._not_found(prompt, encoding, word, beyond=bool(starts)))
        positions = {start + i + 1 for start in kept for i in range(len(needle))}
        return sorted(positions)

    def _not_found(self, prompt: str, encoding: Encoding, word: str, *, beyond: bool) -> str:
        where = f"only beyond the first {self._room} tokens of the prompt, which are all that is used"
        problem = where if beyond else "not in the prompt"
        spans = encoding.offsets[: self._room]
        listing = ", ".join(f"{i} {prompt[start:end]!r}" for i, (start, end) in enumerate(spans, start=1))
        return f"the word {word!r} is {problem}; the prompt's tokens are: {listing or 'none'}"


def _occurrences(encoding: Encoding, needle: list[int]) -> list[int]:
    """Where `needle` occurs as whole words in the encoding: indices of first tokens."""
    ids, word_of = encoding.ids, encoding.word_ids
    last = len(ids) - len(needle)
    # The end needs no test: the last piece of a word (its entry ends in </w>) is never a middle piece.
    return [
        i for i in range(last + 1) if ids[i : i + len(needle)] == needle and (i == 0 or word_of[i] != word_of[i - 1])
    ]
