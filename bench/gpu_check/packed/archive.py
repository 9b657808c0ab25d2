"""Pack an engine directory as graphs and the recipe of its weights, and make the directory again from that.

FILE.tar.xz holds the manifest, the recipe, the bytes that are in no recipe, and every other file as it is, in this
order.
"""

import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ebca.bench.gpu_check.packed.recipe import Recipe
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.errors import EngineError, ParameterError

SUFFIX: Final = ".tar.xz"

_RECIPE, _VERBATIM = "recipe.json", "verbatim.bin"
_IN_ENGINE = "engine/"
_PRESET: Final = 0  # Graphs become small with any, and weights with none.


@dataclass(frozen=True)
class Packed:
    """What `pack` has written, in bytes: the archive; weights that are made again; weights that it holds."""

    archive: int
    made: int
    held: int


def pack(engine: str | Path, output: Path) -> Packed:
    """Write an engine directory to one file, without weights that can be made again.

    Args:
        engine: the directory, or the name of a bundled one. Only the weights of built-in models can be made again.
        output: the file.

    Raises:
        EngineError: not a complete engine directory, or its contents have changed.
        ParameterError: the file cannot be written.
    """
    from ebca.bench.gpu_check.packed.matching import find_recipe
    from ebca.export.checkpoint.built_in import BUILT_IN

    directory = open_directory(engine)
    directory.verify()
    source = directory.manifest.model.get("source") or {}
    model = BUILT_IN.get(str(source.get("id"))) if source.get("kind") == "built-in" else None
    recipe = find_recipe(directory, model.name if model else None, model.shapes() if model else {})
    held = sum(size for _, _, size in recipe.verbatim)
    try:
        # A file that is a link is packed as what it leads to.
        with tarfile.open(output, "w:xz", preset=_PRESET, dereference=True) as archive:
            archive.add(directory.file(manifests.FILE_NAME), _IN_ENGINE + manifests.FILE_NAME)
            _add(archive, _RECIPE, json.dumps(recipe.to_json()).encode())
            _add(archive, _VERBATIM, b"".join(_verbatim(directory, recipe)))
            for name in directory.manifest.files:
                if name not in recipe.sizes:
                    archive.add(directory.file(name), _IN_ENGINE + name)
    except OSError as error:
        raise ParameterError(f"cannot write '{output}': {error.strerror or error}", "name another file") from None
    return Packed(output.stat().st_size, sum(recipe.sizes.values()) - held, held)


def unpack(file: Path, target: Path) -> Path:
    """Make the engine directory that was packed, bit for bit. It appears under its name when it is complete.

    Raises:
        EngineError: the file is missing or damaged, or this machine makes other random weights.
        ParameterError: the target exists.
    """
    if target.exists():
        raise ParameterError(f"'{target}' exists", "name another folder, or delete it")
    work = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        recipe = _extract(file, work)
        _verify(open_directory(work), recipe)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _add(archive: tarfile.TarFile, name: str, contents: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(contents)
    archive.addfile(entry, io.BytesIO(contents))


def _verbatim(directory: EngineDirectory, recipe: Recipe) -> Iterator[bytes]:
    for file, offset, size in recipe.verbatim:
        yield np.memmap(directory.file(file), np.uint8, "r", offset, (size,)).tobytes()


def _extract(file: Path, folder: Path) -> Recipe:
    """Write all files of the engine directory into `folder`."""
    damaged = EngineError(f"'{file}' is damaged, or is no packed engine directory", "pack the engine directory again")
    try:
        with tarfile.open(file, "r|xz") as archive:
            (folder / manifests.FILE_NAME).write_bytes(_next(archive, _IN_ENGINE + manifests.FILE_NAME))
            # Checks that every name stays inside the folder.
            manifest = manifests.read(folder)
            recipe = Recipe.from_json(json.loads(_next(archive, _RECIPE)))
            if any(manifest.files[name].size != size for name, size in recipe.sizes.items()):
                raise damaged
            recipe.make(folder, _next(archive, _VERBATIM))
            for name in manifest.files:
                if name not in recipe.sizes:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(_next(archive, _IN_ENGINE + name))
    except FileNotFoundError:
        raise EngineError(f"there is no file '{file}'", "make it with `pack`") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, KeyError, TypeError, ValueError):
        raise damaged from None
    return recipe


def _next(archive: tarfile.TarFile, name: str) -> bytes:
    """The contents of the next member. Raises ValueError if it is another one."""
    member = archive.next()
    contents = archive.extractfile(member) if member is not None and member.name == name else None
    if contents is None:
        raise ValueError(name)
    return contents.read()


def _verify(directory: EngineDirectory, recipe: Recipe) -> None:
    def check(name: str) -> None:
        try:
            directory.verify([name])
        except EngineError:
            if name in recipe.sizes and recipe.model is not None:
                raise EngineError(
                    f"'{name}', made from the random weights of {recipe.model}, is not what was exported: numpy is "
                    f"{np.__version__} here and was {recipe.numpy} there",
                    f"install numpy {recipe.numpy}, pack again, or copy the engine directory itself",
                ) from None
            raise EngineError(f"'{name}' is not what was exported", "pack the engine directory again") from None

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(check, directory.manifest.files):
            pass
