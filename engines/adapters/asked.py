"""What a call or a command line names as LoRAs and embeddings, as files with their scales and tokens."""

import os
from collections.abc import Sequence
from pathlib import Path

from ebca.engines.adapters.derived import EmbeddingFile, LoraFile
from ebca.errors import ParameterError

LoraArgument = str | Path | tuple[str | Path, float]
"""A file, "FILE:0.8", or (file, 0.8). The scale is 1 where none is said."""

EmbeddingArgument = str | Path | tuple[str | Path, str]
"""A file, "FILE=token", or (file, "token"). Without a token, the file says it."""


def lora_files(given: LoraArgument | Sequence[LoraArgument]) -> tuple[LoraFile, ...]:
    """The LoRAs of an argument: one, or a list. Raises ParameterError for anything else."""
    return tuple(_lora(one) for one in (given if isinstance(given, list) else _single(given)))


def embedding_files(given: EmbeddingArgument | Sequence[EmbeddingArgument]) -> tuple[EmbeddingFile, ...]:
    """The textual inversions of an argument: one, or a list. Raises ParameterError for anything else."""
    return tuple(_embedding(one) for one in (given if isinstance(given, list) else _single(given)))


def _single(given: object) -> Sequence[object]:
    """A list of one. A tuple is a file with its scale or token, unless it holds others or nothing."""
    if isinstance(given, tuple) and (not given or len(given) != 2 or isinstance(given[1], tuple | os.PathLike)):
        return given
    return [given]


def _lora(one: object) -> LoraFile:
    if isinstance(one, str):
        head, sign, tail = one.rpartition(":")
        # A file may have such a name itself.
        if sign and head and not os.path.exists(one):  # noqa: PTH110
            try:
                return LoraFile(Path(head), float(tail))
            except ValueError:
                pass
        return LoraFile(Path(one))
    if isinstance(one, os.PathLike):
        return LoraFile(Path(one))
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | os.PathLike) and _is_number(one[1]):
        return LoraFile(Path(one[0]), float(one[1]))
    raise ParameterError(f"lora has {one!r:.80}", 'give a file, "FILE:0.8", or (file, 0.8)')


def _embedding(one: object) -> EmbeddingFile:
    if isinstance(one, str):
        head, sign, tail = one.rpartition("=")
        if sign and head and not os.path.exists(one):  # noqa: PTH110
            return EmbeddingFile(Path(head), tail)
        return EmbeddingFile(Path(one))
    if isinstance(one, os.PathLike):
        return EmbeddingFile(Path(one))
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | os.PathLike) and isinstance(one[1], str):
        return EmbeddingFile(Path(one[0]), one[1])
    raise ParameterError(f"embedding has {one!r:.80}", 'give a file, "FILE=token", or (file, "token")')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
