"""From prompts to token ids, with the `tokenizers` JSON that the export wrote."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Backend

from ebca.errors import EbcaError, EngineError, ParameterError
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.chunks import Pieces, Reading, chunked

_TOKENS = ("bos", "eos", "pad")

_SHORTEST, _LONGEST = 3, 10_000


@dataclass(frozen=True)
class _Encoding:
    """The tokens of a text: their ids, where each lies in it, and the number of its word."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts.

    Attributes:
        ids: [r,T] int64, T = model_max_length: the rows of all prompts, one for each of their chunks.
        weights: [r,T] float32 factors of the embeddings.
        rows: per prompt: number of its rows.
        truncated: per prompt: the text after the last token that fits; "" if all of it fits.
        tokens: per prompt: vocabulary entries from the first bos to the last eos; the index is the position.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    rows: list[int]
    truncated: list[str]
    tokens: list[list[str]]

    def of(self, prompt: int) -> slice:
        """The rows of a prompt, given its index."""
        first = sum(self.rows[:prompt])
        return slice(first, first + self.rows[prompt])


class Tokenizer:
    """CLIP byte-pair encoding with start token, end token and padding. Thread-safe.

    Prompts are read as plain text of one row, unless `reading` says otherwise.

    Args:
        backend: the vocabulary.
        info: model_max_length; bos_token, eos_token, pad_token and their ids, from the manifest; `expansions`: token to
            the ids that it stands for, for textual inversions of several vectors. With two text encoders also
            pad_token_2 and its id, see `second`.

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
        paired = info.get("pad_token_2") is not None
        self._second_pad_id = _token_id(backend, info, "pad", "_2") if paired else None
        # The file's own truncation would silently drop text.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._expansions: dict[int, list[int]] = {ids[0]: ids for ids in (info.get("expansions") or {}).values()}
        self._reading = Reading()

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

    def reading(self, reading: Reading) -> Tokenizer:
        """This tokenizer with another way to read prompts. Words and phrases are always plain text."""
        other = copy.copy(self)
        other._reading = reading
        return other

    @property
    def second(self) -> Tokenizer | None:
        """The tokenizer of the second text encoder: this one with other padding; None if there is one encoder."""
        if self._second_pad_id is None:
            return None
        other = copy.copy(self)
        other.pad_id = self._second_pad_id
        return other

    def plain(self, prompt: str) -> str:
        """A prompt without the syntax of weights. Raises ParameterError for wrong syntax."""
        return self._reading.of(prompt).plain

    def rows(self, prompt: str) -> int:
        """Number of rows of a prompt. Raises ParameterError as `encode`."""
        return len(self._pieces(prompt).chunks)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encode each chunk of each prompt as bos, at most T - 2 tokens, eos, padding.

        Raises:
            ParameterError: not a sequence of strings of valid Unicode, or wrong syntax.
        """
        if isinstance(prompts, str):
            raise ParameterError("prompts is one string", "put it in a list")
        every = [self._pieces(prompt) for prompt in prompts]
        rows = [len(pieces.chunks) for pieces in every]
        ids = np.full((sum(rows), self.max_length), self.pad_id, np.int64)  # [r,T]
        weights = np.ones(ids.shape, np.float32)
        tokens: list[list[str]] = []
        row = 0
        for pieces in every:
            first, used = row, 0
            for chunk in pieces.chunks:
                kept = [self.bos_id, *pieces.ids[chunk.start : chunk.stop], self.eos_id]
                used = len(kept)
                ids[row, :used] = kept
                weights[row, 1 : used - 1] = pieces.weights[chunk.start : chunk.stop]
                row += 1
            flat = ids[first:row].reshape(-1)
            tokens.append([self._entry(int(index)) for index in flat[: (row - first - 1) * self.max_length + used]])
        return Encoded(ids, weights, rows, [_dropped(pieces) for pieces in every], tokens)

    def find_words(self, prompt: str, words: Sequence[str]) -> dict[str, list[int]]:
        """Token positions (bos is 0) of each word or phrase, for all occurrences in the prompt.

        Only whole words match ("cat" is not in "catalogue"); case and spacing are ignored.

        Raises:
            ParameterError: a word that is not in the prompt, or only after the last token that fits.
        """
        if isinstance(words, str):
            raise ParameterError(f"words is the string {words!r}", "put it in a list")
        pieces = self._pieces(prompt)
        return {word: self._find(pieces, word) for word in words}

    def occurrences(self, prompt: str, phrase: str) -> tuple[list[list[int]], bool]:
        """Token positions of each occurrence of a phrase, which is matched as in `find_words`.

        Returns:
            the positions of every occurrence that fits, in order; whether there are others beyond the last token that
            fits.

        Raises:
            ParameterError: a phrase without tokens, or texts that are not valid Unicode.
        """
        needle, pieces = self._needle(phrase), self._pieces(prompt)
        starts, positions = _occurrences(pieces, needle), pieces.positions
        # Occurrences that the length limit cuts are not used.
        kept = [start for start in starts if start + len(needle) <= pieces.kept]
        return [positions[start : start + len(needle)] for start in kept], len(kept) < len(starts)

    @property
    def _room(self) -> int:
        return self.max_length - 2

    def _pieces(self, prompt: str) -> Pieces:
        """The tokens of a prompt, in chunks. Text between weights is tokenized on its own."""
        _check_text(prompt)
        read = self._reading.of(prompt)
        pieces = Pieces(read.plain, [], [], [], [], [], [], self.max_length)
        for number, segment in enumerate(read.segments):
            encoding = self._encoding(read.plain[segment.start : segment.end])
            count = len(encoding.ids)
            pieces.ids.extend(encoding.ids)
            pieces.weights.extend([segment.weight] * count)
            pieces.spans.extend((segment.start + start, segment.start + end) for start, end in encoding.offsets)
            pieces.words.extend((number, word) for word in encoding.word_ids)
            pieces.parts.extend([segment.part] * count)
        if self._reading.long:
            pieces.chunks.extend(chunked(pieces.ids, pieces.parts, read.parts, self._comma(), self._room))
            if len(pieces.chunks) > rules.MAX_PROMPT_CHUNKS:
                limit = rules.MAX_PROMPT_CHUNKS
                raise rules.PROMPT_CHUNKS.error(count=len(pieces.chunks), room=self._room, limit=limit)
        else:
            pieces.chunks.append(range(min(len(pieces.ids), self._room)))
        return pieces

    def _encoding(self, text: str) -> _Encoding:
        """The tokens of a text, each as all the ids that it stands for, at its place in the text."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        found = _Encoding(encoding.ids, encoding.offsets, encoding.word_ids)
        if not self._expansions.keys() & set(found.ids):
            return found
        several = [self._expansions.get(index, [index]) for index in found.ids]
        return _Encoding(
            [index for ids in several for index in ids],
            [span for span, ids in zip(found.offsets, several, strict=True) for _ in ids],
            [word for word, ids in zip(found.word_ids, several, strict=True) for _ in ids],
        )

    def _comma(self) -> int | None:
        """The id of a comma, if the vocabulary has one that is no other character's."""
        ids: list[int] = self._encoding(",").ids
        return ids[0] if len(ids) == 1 and self._entry(ids[0]) in (",</w>", ",") else None

    def _needle(self, word: str) -> list[int]:
        """The token ids of a word or phrase."""
        _check_text(word)
        ids: list[int] = self._encoding(word).ids
        if not ids:
            raise rules.WORD_WITHOUT_TOKENS.error(word=repr(word))
        return ids

    def _entry(self, index: int) -> str:
        return self._backend.id_to_token(index) or f"#{index}"

    def _find(self, pieces: Pieces, word: str) -> list[int]:
        needle = self._needle(word)
        starts, positions = _occurrences(pieces, needle), pieces.positions
        found = {
            p for start in starts for p in positions[start : start + len(needle)] if start + len(needle) <= pieces.kept
        }
        if not found:
            raise self._not_found(pieces, word, beyond=bool(starts))
        return sorted(found)

    def _not_found(self, pieces: Pieces, word: str, *, beyond: bool) -> EbcaError:
        spans = zip(pieces.positions[: self._room], pieces.spans, strict=False)
        listing = ", ".join(f"{i} {pieces.text[start:end]!r}" for i, (start, end) in spans) or "none"
        if beyond:
            return rules.WORD_BEYOND_LIMIT.error(word=repr(word), limit=self._room, tokens=listing)
        return rules.WORD_NOT_IN_PROMPT.error(word=repr(word), tokens=listing)


def _check_text(text: str) -> None:
    """Raise ParameterError unless it is a string of valid Unicode."""
    if not isinstance(text, str):
        raise ParameterError(f"a prompt is of type {type(text).__name__}", "give a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"the prompt {rules.shortened(repr(text), 100)} is not valid Unicode text: {error.reason}",
            "remove unpaired surrogates",
        ) from error


def _dropped(pieces: Pieces) -> str:
    """The text after the last token that fits."""
    return pieces.text[pieces.spans[pieces.kept][0] :] if pieces.kept < len(pieces.ids) else ""


def _token_id(backend: _Backend, info: Mapping[str, Any], name: str, suffix: str = "") -> int:
    """The id of a special token, which the manifest and the vocabulary must agree on."""
    token, index = info.get(f"{name}_token{suffix}"), info.get(f"{name}_token_id{suffix}")
    found = backend.token_to_id(token) if isinstance(token, str) else None
    if found is None or type(index) is not int or index != found:
        raise EngineError(
            f"the manifest gives {name}_token{suffix} {rules.shortened(repr(token), 60)} the id "
            f"{rules.shortened(repr(index), 60)}, and the vocabulary says "
            f"{'that there is no such token' if found is None else found}",
            "copy the whole engine directory or export it again",
        )
    return found


def _occurrences(pieces: Pieces, needle: list[int]) -> list[int]:
    """Indices of the first tokens of all occurrences of `needle` as whole words, without BREAK inside."""
    ids, word_of, parts = pieces.ids, pieces.words, pieces.parts
    last = len(needle) - 1
    # The end needs no check: the last piece of a word (its entry ends in </w>) is never a middle piece.
    return [
        i
        for i in range(len(ids) - last)
        if ids[i : i + last + 1] == needle and (i == 0 or word_of[i] != word_of[i - 1]) and parts[i] == parts[i + last]
    ]
