"""Derived engine directories: an engine with LoRAs and textual inversions merged into its weights, in the user's cache.

    <cache>/derived-<key>/    an engine directory like any other. Files that do not change are hard links to the base's,
                              or copies where the disk allows no links
    .../engine.json           marks it as the cache's own, so that it is evicted with all else that was not used lately
    .../.lock                 held while it is written; the manifest comes last

The key covers the base, what the files change, and the scales. So a second use finds the directory, and the base is
only read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebca.engines.adapters import embedding as embeddings
from ebca.engines.adapters import lora as loras
from ebca.engines.adapters import onnx_table, rewriting, tokens
from ebca.engines.adapters.embedding import Embedding
from ebca.engines.adapters.lora import Lora
from ebca.engines.adapters.modules import Modules, Weight
from ebca.engines.adapters.onnx_table import Growth
from ebca.engines.adapters.rewriting import Replacement
from ebca.engines.cache.locks import locked
from ebca.engines.cache.parallel import run_each
from ebca.engines.cache.storage import LOCK, MARKER
from ebca.engines.cache.store import check_room, link_or_copy
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract import weights as stored
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.engines.contract.files import sha256
from ebca.engines.contract.manifest import Adapter, Derived, FileRecord, Manifest
from ebca.engines.contract.weights import EMBEDDINGS, Copy, StoredWeight, Weights
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import EngineError, ParameterError

# Increase this whenever the same files make other weights.
DERIVED_VERSION = 1
_PREFIX = "derived-"
# Reading, hashing and writing of one file overlap with those of another.
_FILES_AT_ONCE = 2

Progress = Callable[[int, int, str], None]
"""Called with (done, total, file) while a derived directory is written."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to merge: a .safetensors file, and the factor of its changes."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class EmbeddingFile:
    """A textual inversion to add: a .safetensors file, and the token that prompts write (None: the file says it)."""

    path: Path
    token: str | None = None


def derive(
    base: EngineDirectory,
    lora_files: Sequence[LoraFile] = (),
    embedding_files: Sequence[EmbeddingFile] = (),
    progress: Progress | None = None,
) -> EngineDirectory:
    """The engine directory in the user's cache that has these merged into it. It is written if it is not there.

    Args:
        base: the engine directory, which is only read.
        lora_files: their changes are added up.
        embedding_files: their tokens get ids in this order.
        progress: called while the directory is written, and not if it is there already.

    Raises:
        ParameterError: a file that cannot be read or does not fit the engine.
        EngineError: the base cannot be changed in this way or is damaged, or the cache cannot be written.
    """
    changes = _Changes.of(base, lora_files, embedding_files)
    folder = cache_folder() / f"{_PREFIX}{changes.key}"
    with suppress(EngineError):
        found = open_directory(folder)
        with suppress(OSError):
            # Records when it was last used.
            os.utime(folder)
        return found
    try:
        try:
            return _written(changes, folder, progress)
        except FileNotFoundError:
            # Somebody deleted the folder meanwhile.
            return _written(changes, folder, progress)
    except TimeoutError as error:
        raise EngineError(f"'{folder}' cannot be written: {error}", "end that process, or try later") from None
    except OSError as error:
        raise EngineError(
            f"the merged engine cannot be written to '{folder}': {error.strerror or error}",
            "set EBCA_CACHE_DIR to a writable folder with room",
        ) from None


def _written(changes: "_Changes", folder: Path, progress: Progress | None) -> EngineDirectory:
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        # Another process may have written it meanwhile.
        with suppress(EngineError):
            return open_directory(folder)
        _clear(folder)
        try:
            _Writer(changes, folder, progress or (lambda done, total, name: None)).write()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return open_directory(folder)


@dataclass(frozen=True)
class _Changes:
    """What becomes of a base."""

    base: EngineDirectory
    weights: Weights
    loras: tuple[Lora, ...]
    embeddings: tuple[Embedding, ...]

    @classmethod
    def of(
        cls, base: EngineDirectory, lora_files: Sequence[LoraFile], embedding_files: Sequence[EmbeddingFile]
    ) -> "_Changes":
        weights = _changeable(base)
        modules = Modules(weights)
        found = tuple(loras.read(file.path, file.scale, modules) for file in lora_files)
        encoder = base.manifest.text_encoder
        if embedding_files and encoder is not None and encoder.pooled_size is not None:
            raise embeddings.for_two_encoders()
        if embedding_files and (encoder is None or EMBEDDINGS not in weights["text_encoder"]):
            raise ParameterError("this engine has no text encoder, and an embedding needs one", "export the full model")
        width = encoder.hidden_size if encoder else 0
        return cls(
            base, weights, found, tuple(embeddings.read(file.path, file.token, width) for file in embedding_files)
        )

    @property
    def key(self) -> str:
        facts = {
            "version": DERIVED_VERSION,
            # It has the digests of all files.
            "base": sha256(self.base.file(manifests.FILE_NAME)),
            "lora": [lora.identity for lora in self.loras],
            "embedding": [[one.sha256, one.token] for one in self.embeddings],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def record(self) -> Derived:
        """What the manifest says about them."""
        path = str(self.base.path.absolute())
        return Derived(
            path,
            tuple(Adapter("lora", str(one.path.absolute()), one.sha256, scale=one.scale) for one in self.loras)
            + tuple(
                Adapter("embedding", str(one.path.absolute()), one.sha256, token=one.token) for one in self.embeddings
            ),
        )


def _changeable(base: EngineDirectory) -> Weights:
    manifest = base.manifest
    if manifest.derived is not None:
        raise ParameterError(
            f"'{base.path}' has LoRAs or embeddings already",
            f"give all of them at once, with the engine '{manifest.derived.base}'",
        )
    if manifest.plans:
        library = next(iter(manifest.plans))
        raise EngineError(
            f"'{base.path}' has plans of {library}, which hold the weights as they were built",
            "export it again with --lora, or without plans (--backend onnxruntime-cuda)",
        )
    if manifest.weights is None:
        raise EngineError(
            f"'{base.path}' does not say where its weights lie, as engines of an older ebca-export",
            "export the engine again, then LoRAs and embeddings can be merged into it",
        )
    sizes = {name: record.size for name, record in manifest.files.items()}
    return stored.parse(base.read(manifest.weights), sizes)


def _clear(folder: Path) -> None:
    """Remove what a killed process has left, or what is damaged."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class _Writer:
    """Writes a derived directory into an empty folder."""

    def __init__(self, changes: _Changes, folder: Path, progress: Progress) -> None:
        self._changes = changes
        self._base = changes.base
        self._folder = folder
        self._progress = progress
        self._records: dict[str, FileRecord] = dict(changes.base.manifest.files)
        self._written: set[str] = set()

    def write(self) -> None:
        marker = {"version": DERIVED_VERSION, "backend": "derived", "engine": str(self._base.path)}
        (self._folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")
        info = self._write_embeddings_files() if self._changes.embeddings else None
        edits = self._edits()
        check_room(self._folder, sum(self._base.manifest.files[name].size for name in edits))
        self._rewrite(edits)
        for name in self._records.keys() - self._written:
            link_or_copy(self._base.file(name).resolve(), self._target(name))
        manifest = self._manifest(info)
        temporary = self._folder / f"{manifests.FILE_NAME}.tmp"
        temporary.write_text(manifest.to_json(), encoding="utf-8")
        temporary.replace(self._folder / manifests.FILE_NAME)

    def _manifest(self, info: Mapping[str, Any] | None) -> Manifest:
        base = self._base.manifest
        tokenizer = base.tokenizer if info is None or base.tokenizer is None else replace(base.tokenizer, info=info)
        return replace(base, files=self._records, tokenizer=tokenizer, derived=self._changes.record)

    def _target(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _put(self, name: str, contents: bytes) -> None:
        self._target(name).write_bytes(contents)
        self._records[name] = FileRecord(len(contents), hashlib.sha256(contents).hexdigest())
        self._written.add(name)

    def _rewrite(self, edits: Mapping[str, Sequence[Replacement]]) -> None:
        def work(name: str) -> FileRecord:
            expected = self._base.manifest.files[name]
            return rewriting.rewrite(self._base.file(name), expected, self._target(name), edits[name])

        def done(name: str, record: FileRecord) -> None:
            self._records[name] = record
            self._written.add(name)
            self._progress(len(self._written & edits.keys()), len(edits), name)

        largest_first = sorted(edits, key=lambda name: -self._base.manifest.files[name].size)
        self._progress(0, len(edits), largest_first[0] if edits else "")
        run_each(work, largest_first, _FILES_AT_ONCE, done)

    def _edits(self) -> dict[str, list[Replacement]]:
        """File of weights -> its replacements."""
        edits: dict[str, list[Replacement]] = {}
        changing: dict[Weight, list[Lora]] = {}
        for lora in self._changes.loras:
            for weight in lora.weights:
                changing.setdefault(weight, []).append(lora)
        table = Weight("text_encoder", EMBEDDINGS)
        if self._changes.embeddings:
            changing.setdefault(table, [])
        for weight, its in changing.items():
            place = self._changes.weights[weight.part][weight.name]
            for copy in place.copies:
                make = partial(_merged, its, weight, place, copy)
                if weight == table and self._changes.embeddings:
                    make = partial(self._with_rows, make, copy)
                edits.setdefault(copy.file, []).append(Replacement(copy.offset, place.nbytes(copy), make))
        return edits

    def _write_embeddings_files(self) -> Mapping[str, Any]:
        """Everything that new tokens change beside the table itself; returns the tokenizer's information."""
        manifest, weights = self._base.manifest, self._changes.weights
        assert manifest.tokenizer is not None and manifest.text_encoder is not None and manifest.weights is not None
        text = self._base.read(manifest.tokenizer.file).decode("utf-8")
        text, info, first = tokens.with_tokens(text, manifest.tokenizer.info, self._changes.embeddings)
        self._put(manifest.tokenizer.file, text.encode("utf-8"))
        place = weights["text_encoder"][EMBEDDINGS]
        ends = [first[i] + len(one.vectors) for i, one in enumerate(self._changes.embeddings)]
        self._rows, self._first = max(place.shape[0], *ends), first
        component = manifest.components[manifest.text_encoder.component]
        if len(place.copies) != 1 or place.copies[0].transposed or place.copies[0].file != component.weights:
            raise EngineError(
                f"the table of tokens of '{self._base.path}' has an unknown form", "export the engine again"
            )
        copy, (rows, width) = place.copies[0], place.shape
        growth = Growth(copy.offset, width * np.dtype(copy.dtype).itemsize, rows, self._rows, width)
        for sharing in (each for each in manifest.components.values() if each.weights == copy.file):
            for graph in (sharing.graph, *sharing.lowered.values()):
                self._put(graph, onnx_table.grown(self._base.read(graph), growth))
        self._put(manifest.weights, stored.to_json(stored.with_rows(weights, self._rows)).encode("utf-8"))
        return info

    def _with_rows(self, merge: Callable[[bytes], bytes], copy: Copy, old: bytes) -> bytes:
        place = self._changes.weights["text_encoder"][EMBEDDINGS]
        table = np.zeros((self._rows, place.shape[1]), copy.dtype)
        table[: place.shape[0]] = np.frombuffer(merge(old), copy.dtype).reshape(place.shape)
        for index, one in enumerate(self._changes.embeddings):
            start = self._first[index]
            table[start : start + len(one.vectors)] = _stored(one.vectors, copy, f"'{one.path}'")
        return table.tobytes()


def _merged(its: Iterable[Lora], weight: Weight, place: StoredWeight, copy: Copy, old: bytes) -> bytes:
    """The bytes of one copy of a weight with the changes of LoRAs, summed in float32 and rounded once."""
    shape = place.shape[::-1] if copy.transposed else place.shape
    values = np.frombuffer(old, copy.dtype).reshape(shape)
    total = (values.T if copy.transposed else values).astype(np.float32)
    for lora in its:
        total += lora.change(weight, place.shape)
    made = _stored(total, copy, f"'{weight.name}' with the LoRA")
    return np.ascontiguousarray(made.T if copy.transposed else made).tobytes()


def _stored(values: np.ndarray, copy: Copy, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = values.astype(copy.dtype)
    if not np.isfinite(made).all():
        raise ParameterError(f"{what} has values beyond {copy.dtype}", "give a smaller scale, or use another file")
    return made
