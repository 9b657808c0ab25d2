"""Engine directories with one damaged file: the image is the right one, or one line says what is damaged."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np

import ebca
from ebca.bench.reliability.table import Options
from ebca.engines.contract.directory import open_directory
from ebca.errors import EbcaError
from ebca.runtime.diagnostics.directory import check_engine

_PROMPT: Final = "a red circle"
_STEPS: Final = 3
_LONGEST: Final = 600
"""Characters of an error: more does not fit the terminal."""

_Damage = Callable[[random.Random, bytes], bytes]
_DAMAGES: Final[dict[str, _Damage]] = {
    "one bit": lambda chance, data: _flipped(chance, data, 1),
    "many bits": lambda chance, data: _flipped(chance, data, 100),
    "cut": lambda chance, data: data[: chance.randrange(len(data))],
    "longer": lambda chance, data: data + chance.randbytes(chance.randint(1, 4096)),
    "zeros": lambda chance, data: _zeroed(chance, data),
    "empty": lambda chance, data: b"",
}


def run(options: Options) -> dict[str, Any]:
    """count: damaged directories, each of which is used once.

    Every other one meets a cache without prepared components. Half of the files keep their date, as a failing disk
    leaves it. A failure is a directory that gave another image, ended in another error than one line, or was healthy in
    the doctor's eyes.
    """
    source, cold = options.folder / "engine", options.folder / "cold"
    shutil.copytree(open_directory(options.engine).path, source)
    chance = random.Random(options.seed)
    files = sorted(open_directory(source).manifest.files)
    report: dict[str, Any] = {"right_images": 0, "refused": 0, "failures": []}
    with own_cache(options.folder / "cache"):
        right = {name: image(source, options.backend, name) for name in _schedulers(source)}
        for index in range(options.count):
            file, way, scheduler = chance.choice(files), chance.choice(sorted(_DAMAGES)), chance.choice(sorted(right))
            damaged = _damaged(chance, source, options.folder / "damaged", file, way)
            with own_cache(cold) if index % 2 else nullcontext():
                outcome, problem = _outcome(damaged, options.backend, scheduler, right[scheduler])
                if problem is None and all(found.level != "problem" for found in check_engine(damaged)):
                    problem = "the doctor finds nothing"
            report[outcome] = report.get(outcome, 0) + 1
            if problem is not None:
                report["failures"].append(f"{file}, {way}, {'cold' if index % 2 else 'warm'} cache: {problem}")
            shutil.rmtree(damaged)
            shutil.rmtree(cold, ignore_errors=True)
    return report


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """A folder for prepared components instead of the user's."""
    before = os.environ.get("EBCA_CACHE_DIR")
    os.environ["EBCA_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EBCA_CACHE_DIR"]
        else:
            os.environ["EBCA_CACHE_DIR"] = before


def _outcome(directory: Path, backend: str, scheduler: str, right: np.ndarray) -> tuple[str, str | None]:
    """What came of making an image: a key of the report, and what is wrong with it."""
    try:
        found = image(directory, backend, scheduler)
    except EbcaError as error:
        text = str(error)
        wrong = "\n" in text or len(text) > _LONGEST
        return "refused", f"said {len(text)} characters in {text.count(chr(10)) + 1} lines" if wrong else None
    except Exception as error:
        return "other_errors", f"{type(error).__name__}: {error}"
    if not np.array_equal(found, right):
        return "other_images", f"another image, by up to {np.abs(found - right).max():.3f}"
    return "right_images", None


def image(directory: Path, backend: str, scheduler: str | None = None) -> np.ndarray:
    """[1,H,W,3] float32, with updates, so that every part of the engine takes part."""
    with ebca.load(directory, "cpu", backend) as engine, engine.session() as session:
        result = session.generate(
            _PROMPT, scheduler=scheduler, steps=_STEPS, seed=1, gamma_attn=0.01, gamma_norm=0.01, output="np"
        )
        return np.asarray(result.images)


def _schedulers(directory: Path) -> list[str]:
    return [name for name in open_directory(directory).manifest.schedulers["tables"] if not name.endswith("inverse")]


def _damaged(chance: random.Random, source: Path, target: Path, file: str, way: str) -> Path:
    """`source` with one file damaged; all others are hard links to it."""
    shutil.copytree(source, target, copy_function=os.link)
    path = target / file
    info, data = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(_DAMAGES[way](chance, data))
    if chance.random() < 0.5:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    return target


def _flipped(chance: random.Random, data: bytes, bits: int) -> bytes:
    changed = bytearray(data)
    for _ in range(bits):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    # An even number of flips of one bit is none.
    return bytes(changed) if changed != data else _flipped(chance, data, bits)


def _zeroed(chance: random.Random, data: bytes) -> bytes:
    """A block of zeros, as a lost page leaves it."""
    at = chance.randrange(len(data))
    changed = data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]
    return changed if changed != data else _flipped(chance, data, 1)
