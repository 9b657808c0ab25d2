"""Processes that read images while the next ones are made.

They import this module, so it does not import PyTorch.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from ebca.bench.alignment.detector import Reading, detect, read
from ebca.bench.alignment.rivals.layout import own_layout
from ebca.bench.alignment.scenes import Scene

_T = TypeVar("_T")
_SHARE = 16
"""Images per piece of work: about 0.15 seconds."""


class Readers:
    """The detector in `workers` processes; by default one per core but for this process. A context manager."""

    def __init__(self, workers: int | None = None) -> None:
        # The first process may hold a CUDA context, which a fork would break.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers or max((os.cpu_count() or 1) - 1, 1), mp_context=context)

    def read(self, images: np.ndarray, scenes: Sequence[Scene]) -> "Pending[Reading]":
        """Readings of images [n,H,W,3] of these scenes."""
        return self._spread(_read, images, scenes)

    def places(self, images: np.ndarray, scenes: Sequence[Scene], seeds: Sequence[int]) -> np.ndarray:
        """Where the oracle puts the things of these scenes, [n,G,3]."""
        found = self._spread(_places, images, list(zip(scenes, seeds, strict=True))).result()
        return np.array(found, np.float32)

    def map(self, function: Callable[..., _T], *arguments: Iterable[Any]) -> list[_T]:
        """The function's results for each set of arguments."""
        return list(self._pool.map(function, *arguments, chunksize=4))

    def _spread(self, function: Callable[..., list[_T]], images: np.ndarray, others: Sequence[Any]) -> "Pending[_T]":
        pieces = [slice(at, at + _SHARE) for at in range(0, len(images), _SHARE)]
        return Pending([self._pool.submit(function, images[piece], others[piece]) for piece in pieces])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


class Pending(Generic[_T]):
    """Results that other processes are working on, in order."""

    def __init__(self, pieces: Sequence[Future[list[_T]]]) -> None:
        self._pieces = list(pieces)

    def done(self) -> bool:
        return all(piece.done() for piece in self._pieces)

    def result(self) -> list[_T]:
        return [one for piece in self._pieces for one in piece.result()]


def _read(images: np.ndarray, scenes: Sequence[Scene]) -> list[Reading]:
    return [read(image, scene) for image, scene in zip(images, scenes, strict=True)]


def _places(images: np.ndarray, cases: Sequence[tuple[Scene, int]]) -> list[list[tuple[float, float, float]]]:
    return [own_layout(scene, detect(image), seed) for image, (scene, seed) in zip(images, cases, strict=True)]
