"""What a call or a command line names as LoRAs and embeddings, as files with their scales and tokens."""

import os
from collections.abc import Sequence
from pathlib import Path

from ebca.engines.adapters.derived import EmbeddingFile, LoraFile, Progress, derive
from ebca.engines.contract.directory import EngineDirectory
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


def merged(
    directory: EngineDirectory,
    lora: LoraArgument | Sequence[LoraArgument],
    embedding: EmbeddingArgument | Sequence[EmbeddingArgument],
    progress: Progress | None,
) -> EngineDirectory:
    """A directory with all of these merged into it: the derived one, or itself if nothing is asked for.

    Raises as `derive`, and ParameterError for an argument that is no such thing.
    """
    loras, embeddings = lora_files(lora), embedding_files(embedding)
    return derive(directory, loras, embeddings, progress) if loras or embeddings else directory


def _single(given: object) -> Sequence[object]:
    """A list of one. A tuple is a file with its scale or token, unless it holds others or nothing."""
    if isinstance(given, tuple) and (not given or len(given) != 2 or isinstance(given[1], tuple | os.PathLike)):
        return given
    return [given]


def _lora(one: object) -> LoraFile:
    if isinstance(one, str):
        file, scale = _split(one, ":")
        try:
            return LoraFile(Path(file)) if scale is None else LoraFile(Path(file), float(scale))
        except ValueError:
            return LoraFile(Path(one))
    if isinstance(one, os.PathLike):
        return LoraFile(Path(one))
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | os.PathLike) and _is_number(one[1]):
        return LoraFile(Path(one[0]), float(one[1]))
    raise ParameterError(f"lora has {one!r:.80}", 'give a file, "FILE:0.8", or (file, 0.8)')


def _embedding(one: object) -> EmbeddingFile:
    if isinstance(one, str):
        file, token = _split(one, "=")
        return EmbeddingFile(Path(file), token)
    if isinstance(one, os.PathLike):
        return EmbeddingFile(Path(one))
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | os.PathLike) and isinstance(one[1], str):
        return EmbeddingFile(Path(one[0]), one[1])
    raise ParameterError(f"embedding has {one!r:.80}", 'give a file, "FILE=token", or (file, "token")')


def _split(text: str, sign: str) -> tuple[str, str | None]:
    """A file, and what is written behind a sign after it; None if nothing is."""
    file, found, rest = text.rpartition(sign)
    # A file may have such a name itself.
    if not found or not file or os.path.exists(text):  # noqa: PTH110
        return text, None
    return file, rest


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
