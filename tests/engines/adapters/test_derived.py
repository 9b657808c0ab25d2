"""Derived directories: the base is never changed, a second use writes nothing, and the cache bounds them."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import loras
from helpers.tiny import call_inputs, changed_copy

import ebca
from ebca.engines.adapters.derived import EmbeddingFile, LoraFile, derive
from ebca.engines.cache.storage import evict, stored_engines
from ebca.engines.contract.directory import EngineDirectory, open_directory, sha256
from ebca.errors import EngineError, ParameterError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> LoraFile:
    return LoraFile(loras.write(tmp_path / "a.safetensors"), 0.8)


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_base_is_only_read_and_unchanged_files_are_shared(
    base: EngineDirectory, cache: Path, file: LoraFile
) -> None:
    before = digests(base.path)
    found = derive(base, [file])
    found.verify()
    assert digests(base.path) == before
    assert found.path.parent == cache and found.manifest.derived is not None
    adapter = found.manifest.derived.adapters[0]
    assert (adapter.kind, adapter.file, adapter.scale) == ("lora", str(file.path), 0.8)
    assert adapter.sha256 == sha256(file.path) and found.manifest.derived.base == str(base.path)
    changed = {n for n, record in found.manifest.files.items() if record != base.manifest.files[n]}
    assert changed and all(name.endswith(".onnx.data") for name in changed) and "vae_decoder.onnx.data" not in changed
    for name in base.manifest.files:
        assert found.file(name).samefile(base.file(name)) == (name not in changed)


def test_a_second_use_writes_nothing(base: EngineDirectory, cache: Path, file: LoraFile) -> None:
    calls: list[tuple[int, int, str]] = []
    first = derive(base, [file], progress=lambda *call: calls.append(call))
    total = calls[0][1]
    assert [call[0] for call in calls] == list(range(total + 1)) and total > 3
    times = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    os.utime(first.path, (1, 1))
    calls.clear()
    assert derive(base, [file], progress=lambda *call: calls.append(call)) == first and calls == []
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == times
    # Eviction goes by it.
    assert first.path.stat().st_mtime > 1


def test_each_set_of_files_has_a_directory_of_its_own(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    one = loras.write(tmp_path / "one.safetensors")
    two = loras.write(tmp_path / "two.safetensors", loras.tensors("kohya", seed=1))
    sets = [[LoraFile(one)], [LoraFile(one, 0.5)], [LoraFile(two)], [LoraFile(one), LoraFile(two)]]
    assert len({derive(base, files).path for files in sets}) == len(sets)
    # The name does not matter.
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(one.read_bytes())
    assert derive(base, [LoraFile(copy)]).path == derive(base, [LoraFile(one)]).path


def test_one_after_the_other_and_the_first_again(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    one = loras.write(tmp_path / "one.safetensors")
    two = loras.write(tmp_path / "two.safetensors", loras.tensors("kohya", seed=1))
    sample, contexts = call_inputs()

    def noise(engine: ebca.Engine) -> np.ndarray:
        with engine:
            return ebca.Denoiser(engine)(sample, 500, contexts).noise

    engine = ebca.load(base.path)
    plain = ebca.Denoiser(engine)(sample, 500, contexts).noise
    a, b, again = (noise(engine.with_lora(path)) for path in (one, two, f"{one}:1.0"))
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 1e-2 and np.abs(a - plain).max() > 1e-2
    np.testing.assert_array_equal(ebca.Denoiser(engine)(sample, 500, contexts).noise, plain)
    # Made again, not found again.
    for path in cache.glob("derived-*"):
        path.rename(tmp_path / path.name)
    np.testing.assert_array_equal(noise(engine.with_lora(one)), a)
    engine.close()


def test_what_a_killed_process_left_is_written_again(base: EngineDirectory, cache: Path, file: LoraFile) -> None:
    found = derive(base, [file])
    expected = digests(found.path)
    (found.path / "manifest.json").unlink()
    (found.path / "unet" / "segment_00.onnx.data").write_bytes(b"half")
    (found.path / "rubbish.tmp").write_bytes(b"half")
    assert digests(derive(base, [file]).path) == expected


def test_a_damaged_base_is_found_and_nothing_is_left(
    base: EngineDirectory, cache: Path, file: LoraFile, tmp_path: Path
) -> None:
    copy = open_directory(changed_copy(base.path, tmp_path / "engine", lambda manifest: None))
    path = copy.file("unet/segment_01.onnx.data")
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(EngineError, match=r"segment_01\.onnx\.data' is corrupted"):
        derive(copy, [file])
    assert list(cache.iterdir()) == []


def test_they_are_evicted_like_prepared_engines(base: EngineDirectory, cache: Path, file: LoraFile) -> None:
    found = derive(base, [file])
    prepared = cache / "onnxruntime-any"
    prepared.mkdir()
    (stored,) = stored_engines(cache)
    own = sum(path.stat().st_size for path in found.path.rglob("*") if path.stat().st_nlink == 1)
    assert stored.folder == found.path and own < stored.size < sum(r.size for r in found.manifest.files.values()) + own
    os.utime(found.path, (1, 1))
    assert evict(prepared, 0, directory=found.path) == []
    assert evict(prepared, 0) == [found.path]
    # The base has other names for its files.
    base.verify()


def test_a_cache_that_cannot_be_written(
    base: EngineDirectory, file: LoraFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_bytes(b"")
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "taken"))
    with pytest.raises(EngineError, match=r"cannot be written to .*set EBCA_CACHE_DIR to a writable folder"):
        derive(base, [file])


def test_a_derived_engine_takes_no_more(base: EngineDirectory, cache: Path, file: LoraFile) -> None:
    with ebca.load(base.path, lora=file.path) as engine, pytest.raises(ParameterError, match=r"has LoRAs .* already"):
        engine.with_lora(file.path)


def test_a_unet_alone(tiny_unet_dir: Path, cache: Path, tmp_path: Path) -> None:
    unet = open_directory(tiny_unet_dir)
    path = loras.write(tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="6 of 30 tensors fit nothing"):
        derive(unet, [LoraFile(path)])
    with pytest.raises(ParameterError, match="has no text encoder"):
        derive(unet, embedding_files=[EmbeddingFile(path)])
