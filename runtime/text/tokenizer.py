"""From prompts to token ids, with the `tokenizers` JSON that the export wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as _Backend

from ebca.errors import EbcaError, EngineError, ParameterError
from ebca.runtime.schema import parameters as rules

_TOKENS = ("bos", "eos", "pad")

_SHORTEST, _LONGEST = 3, 10_000


@dataclass(frozen=True)
class _Pieces:
    """The tokens of a text: their ids, where each lies in it, and the number of its word."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts.

    Attributes:
        ids: [n,T] int64, T = model_max_length.
        truncated: per prompt: the text after the last token that fits; "" if all of it fits.
        tokens: per prompt: vocabulary entries from bos to eos without padding; the index is the position.
    """

    ids: NDArray[np.int64]
    truncated: list[str]
    tokens: list[list[str]]


class Tokenizer:
    """CLIP byte-pair encoding with start token, end token and padding. Thread-safe.

    Args:
        backend: the vocabulary.
        info: model_max_length; bos_token, eos_token, pad_token and their ids, from the manifest; `expansions`: token to
            the ids that it stands for, for textual inversions of several vectors.

    Raises:
        EngineError: incomplete information, or other ids than those of the vocabulary.
    """

    def __init__(self, backend: _Backend, info: Mapping[str, Any]) -> None:
        length = info.get("model_max_length")
        if type(length) is not int or not _SHORTEST <= length <= _LONGEST:
            raise EngineError(
                f"the tokenizer's model_max_length is {rules.shortened(repr(length), 60)} instead of {_SHORTEST} to "
                f"{_LONGEST}",
                "export the engine again",
            )
        self.max_length = length
        self.bos_id, self.eos_id, self.pad_id = (_token_id(backend, info, name) for name in _TOKENS)
        # The file's own truncation would silently drop text.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._expansions: dict[int, list[int]] = {ids[0]: ids for ids in (info.get("expansions") or {}).values()}

    @classmethod
    def load(cls, path: str | Path, info: Mapping[str, Any]) -> Tokenizer:
        """Read a tokenizer from a file.

        Args:
            path: the JSON file.
            info: see the class.

        Raises:
            EngineError: the file cannot be read, or `info` is incomplete.
        """
        try:
            contents = Path(path).read_bytes()
        except OSError as error:
            raise EngineError(f"cannot read the tokenizer {path}: {error}", "export the engine again") from error
        return cls.from_bytes(contents, info)

    @classmethod
    def from_bytes(cls, contents: bytes, info: Mapping[str, Any]) -> Tokenizer:
        """Like `load`, from the contents of the file."""
        try:
            return cls.from_json(contents.decode("utf-8"), info)
        except UnicodeDecodeError as error:
            raise EngineError(f"the tokenizer is not UTF-8: {error}", "export the engine again") from error

    @classmethod
    def from_json(cls, text: str, info: Mapping[str, Any]) -> Tokenizer:
        """Like `load`, from the JSON text."""
        try:
            backend = _Backend.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(
                f"the tokenizer is not valid `tokenizers` JSON: {' '.join(str(error).split())}",
                "export the engine again",
            ) from error
        return cls(backend, info)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encode each prompt as bos, at most T - 2 tokens, eos, padding.

        Raises:
            ParameterError: not a sequence of strings of valid Unicode.
        """
        if isinstance(prompts, str):
            raise ParameterError("prompts is one string", "put it in a list")
        ids = np.full((len(prompts), self.max_length), self.pad_id, np.int64)  # [n,T]
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
        """Token positions (bos is 0) of each word or phrase, for all occurrences in the prompt.

        Only whole words match ("cat" is not in "catalogue"); case and spacing are ignored.

        Raises:
            ParameterError: a word that is not in the prompt, or only after the last token that fits.
        """
        if isinstance(words, str):
            raise ParameterError(f"words is the string {words!r}", "put it in a list")
        encoding = self._pieces(prompt)
        return {word: self._find(prompt, encoding, word) for word in words}

    def occurrences(self, prompt: str, phrase: str) -> tuple[list[list[int]], bool]:
        """Token positions of each occurrence of a phrase, which is matched as in `find_words`.

        Returns:
            the positions of every occurrence that fits, in order; whether there are others beyond the last token that
            fits.

        Raises:
            ParameterError: a phrase without tokens, or texts that are not valid Unicode.
        """
        needle = self._needle(phrase)
        starts = _occurrences(self._pieces(prompt), needle)
        kept = [start for start in starts if start + len(needle) <= self._room]
        return [[start + 1 + i for i in range(len(needle))] for start in kept], len(kept) < len(starts)

    @property
    def _room(self) -> int:
        return self.max_length - 2

    def _pieces(self, text: str) -> _Pieces:
        if not isinstance(text, str):
            raise ParameterError(f"a prompt is of type {type(text).__name__}", "give a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"the prompt {rules.shortened(repr(text), 100)} is not valid Unicode text: {error.reason}",
                "remove unpaired surrogates",
            ) from error
        return self._expanded(self._backend.encode(text, add_special_tokens=False))

    def _expanded(self, encoding: Encoding) -> _Pieces:
        """Every token as the ids that it stands for, all of them at its place in the text."""
        found = _Pieces(encoding.ids, encoding.offsets, encoding.word_ids)
        if not self._expansions.keys() & set(found.ids):
            return found
        counts = [self._expansions.get(index, [index]) for index in found.ids]
        return _Pieces(
            [index for ids in counts for index in ids],
            [span for span, ids in zip(found.offsets, counts, strict=True) for _ in ids],
            [word for word, ids in zip(found.word_ids, counts, strict=True) for _ in ids],
        )

    def _needle(self, word: str) -> list[int]:
        """The token ids of a word or phrase."""
        ids: list[int] = self._pieces(word).ids
        if not ids:
            raise rules.WORD_WITHOUT_TOKENS.error(word=repr(word))
        return ids

    def _entry(self, index: int) -> str:
        return self._backend.id_to_token(index) or f"#{index}"

    def _dropped(self, prompt: str, encoding: _Pieces) -> str:
        if len(encoding.ids) <= self._room:
            return ""
        return prompt[encoding.offsets[self._room][0] :]

    def _find(self, prompt: str, encoding: _Pieces, word: str) -> list[int]:
        needle = self._needle(word)
        starts = _occurrences(encoding, needle)
        # Occurrences that the length limit cuts are not used.
        kept = [start for start in starts if start + len(needle) <= self._room]
        if not kept:
            raise self._not_found(prompt, encoding, word, beyond=bool(starts))
        positions = {start + i + 1 for start in kept for i in range(len(needle))}
        return sorted(positions)

    def _not_found(self, prompt: str, encoding: _Pieces, word: str, *, beyond: bool) -> EbcaError:
        spans = encoding.offsets[: self._room]
        listing = ", ".join(f"{i} {prompt[start:end]!r}" for i, (start, end) in enumerate(spans, start=1)) or "none"
        if beyond:
            return rules.WORD_BEYOND_LIMIT.error(word=repr(word), limit=self._room, tokens=listing)
        return rules.WORD_NOT_IN_PROMPT.error(word=repr(word), tokens=listing)


def _token_id(backend: _Backend, info: Mapping[str, Any], name: str) -> int:
    """The id of a special token, which the manifest and the vocabulary must agree on."""
    token, index = info.get(f"{name}_token"), info.get(f"{name}_token_id")
    found = backend.token_to_id(token) if isinstance(token, str) else None
    if found is None or type(index) is not int or index != found:
        raise EngineError(
            f"the manifest gives {name}_token {rules.shortened(repr(token), 60)} the id "
            f"{rules.shortened(repr(index), 60)}, and the vocabulary says "
            f"{'that there is no such token' if found is None else found}",
            "copy the whole engine directory or export it again",
        )
    return found


def _occurrences(encoding: _Pieces, needle: list[int]) -> list[int]:
    """Indices of the first tokens of all occurrences of `needle` as whole words."""
    ids, word_of = encoding.ids, encoding.word_ids
    last = len(ids) - len(needle)
    # The end needs no check: the last piece of a word (its entry ends in </w>) is never a middle piece.
    return [
        i for i in range(last + 1) if ids[i : i + len(needle)] == needle and (i == 0 or word_of[i] != word_of[i - 1])
    ]
