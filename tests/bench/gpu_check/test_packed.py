"""Packing engine directories: the same bytes come back, and whatever is wrong is an error that says so."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import manifests

from ebca.bench.gpu_check.packed import recipe as recipes
from ebca.bench.gpu_check.packed.archive import pack, unpack
from ebca.bench.gpu_check.packed.matching import find_recipe
from ebca.engines.contract.directory import open_directory, sha256
from ebca.engines.contract.manifest import FILE_NAME, FileRecord
from ebca.errors import EngineError, ParameterError
from ebca.export.checkpoint.built_in import BUILT_IN, RANDOM_SD_1_5
from ebca.export.checkpoint.random_weights import random_parameter

TINY = BUILT_IN["tiny"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def packed(tiny_engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "tiny.tar.xz"
    made = pack(tiny_engine_dir, file)
    # Every weight of the built-in model is found.
    assert made.held < 0.02 * made.made
    return file


def test_the_same_bytes_come_back(packed: Path, tiny_engine_dir: Path, tmp_path: Path) -> None:
    folder = unpack(packed, tmp_path / "engine")
    assert contents(folder) == contents(tiny_engine_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_stable_diffusion_xl_comes_back(tiny_xl_dir: Path, tmp_path: Path) -> None:
    made = pack(tiny_xl_dir, tmp_path / "packed.tar.xz")
    assert made.held < 0.02 * made.made
    assert contents(unpack(tmp_path / "packed.tar.xz", tmp_path / "engine")) == contents(tiny_xl_dir)


def test_float16_weights_come_back(tiny_engine_fp16_dir: Path, tmp_path: Path) -> None:
    # A UNet that was exported alone does not say what it comes from.
    directory = open_directory(tiny_engine_fp16_dir)
    recipe = find_recipe(directory, "tiny", TINY.shapes())
    assert sum(size for _, _, size in recipe.verbatim) < 0.02 * sum(recipe.sizes.values())
    verbatim = b"".join(
        (tiny_engine_fp16_dir / file).read_bytes()[offset : offset + size] for file, offset, size in recipe.verbatim
    )
    recipes.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))).make(tmp_path, verbatim)
    for file in recipe.sizes:
        assert sha256(tmp_path / file) == directory.manifest.files[file].sha256


def _channels_last(key: str) -> np.ndarray:
    return np.moveaxis(random_parameter(key, TINY.shapes()[key]), 1, -1).astype(np.float16)


def _half(key: str) -> np.ndarray:
    return random_parameter(key, TINY.shapes()[key]).astype(np.float16)


_ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"


def _interleaved() -> np.ndarray:
    """Query, key and value as one product, whose columns alternate between them, head by head."""
    parts = [_half(f"{_ATTENTION}.to_{name}.weight").reshape(8, 8, -1) for name in "qkv"]
    return np.ascontiguousarray(np.stack(parts, axis=1).reshape(-1, 64).T)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _half("conv_in.weight"),
        lambda: _channels_last("conv_in.weight"),
        lambda: _half(f"{_ATTENTION}.to_q.weight").T,
        lambda: np.concatenate([_half(f"{_ATTENTION}.to_{name}.weight") for name in "qk"]),
        _interleaved,
        lambda: np.concatenate([_half("conv_norm_out.weight"), _half("conv_norm_out.bias")]),
        lambda: _half("conv_norm_out.weight").astype(np.float32).reshape(1, -1, 1, 1),
    ],
    ids=["plain", "channels last", "transposed", "concatenated", "interleaved", "vectors", "rounded"],
)
def test_rearranged_weights_are_found(make: Callable[[], np.ndarray], tiny_engine_dir: Path, tmp_path: Path) -> None:
    tensor = np.ascontiguousarray(make())
    found = _recipe_of(tensor, tiny_engine_dir, tmp_path)
    assert found.pieces and found.verbatim == []
    found.make(tmp_path / "made", b"")
    assert (tmp_path / "made" / "x.data").read_bytes() == bytes(64) + tensor.tobytes()


def test_changed_weights_are_held(tiny_engine_dir: Path, tmp_path: Path) -> None:
    tensor = _half("conv_in.weight") * np.float16(0.5)
    found = _recipe_of(tensor, tiny_engine_dir, tmp_path)
    assert found.pieces == [] and found.verbatim == [("x.data", 0, 64 + tensor.nbytes)]


def _recipe_of(tensor: np.ndarray, engine: Path, tmp_path: Path) -> recipes.Recipe:
    """Of a directory with a single tensor, after 64 bytes of zeros."""
    (tmp_path / "x.data").write_bytes(bytes(64) + tensor.tobytes())
    proto = onnx.TensorProto(name="x", data_type=onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype), dims=tensor.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "x.data"), ("offset", 64), ("length", tensor.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [proto])), tmp_path / "x.onnx")
    record = FileRecord(64 + tensor.nbytes, "")
    manifest = replace(open_directory(engine).manifest, files={"x.onnx": record, "x.data": record})
    return find_recipe(replace(open_directory(engine), path=tmp_path, manifest=manifest), "tiny", TINY.shapes())


def test_a_damaged_file_is_an_error(packed: Path, tmp_path: Path) -> None:
    contents = bytearray(packed.read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 64] = bytes(64)
    for name, data in (("changed", contents), ("short", contents[: middle // 2]), ("empty", b"")):
        file = tmp_path / f"{name}.tar.xz"
        file.write_bytes(data)
        with pytest.raises(EngineError, match=rf"{name}\.tar\.xz' is damaged.*pack the engine directory again"):
            unpack(file, tmp_path / "engine")
        assert not (tmp_path / "engine").exists()
    with pytest.raises(EngineError, match="there is no file"):
        unpack(tmp_path / "absent.tar.xz", tmp_path / "engine")


def test_a_tampered_member_is_an_error(packed: Path, tmp_path: Path) -> None:
    tampered = repacked(
        packed, tmp_path, lambda name, data: data.replace(b"ebca", b"abce") if ".onnx" in name else data
    )
    with pytest.raises(EngineError, match=r"\.onnx' is not what was exported; pack the engine directory again"):
        unpack(tampered, tmp_path / "engine")


def test_a_name_outside_the_directory_is_refused(packed: Path, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        evil = data.replace(b'"tokenizer.json"', b'"../../evil.json"')
        return manifests.stamped(json.loads(evil)) if name.endswith(FILE_NAME) else data

    with pytest.raises(EngineError, match="outside the engine directory"):
        unpack(repacked(packed, tmp_path, change), tmp_path / "engine")


def test_other_random_numbers_are_an_error(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "random_parameter", lambda key, shape: random_parameter(key, shape, seed=1))
    with pytest.raises(
        EngineError, match=rf"random weights of tiny, is not what was exported: numpy is {np.__version__}"
    ):
        unpack(packed, tmp_path / "engine")


def test_an_existing_target_is_kept(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="exists"):
        unpack(packed, tmp_path)


def repacked(packed: Path, tmp_path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of a packed file with changed contents."""
    import io

    out = tmp_path / "changed.tar.xz"
    with tarfile.open(packed) as source, tarfile.open(out, "w:xz", preset=0) as target:
        for member in source:
            reader = source.extractfile(member)
            assert reader is not None
            data = change(member.name, reader.read())
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out


def test_the_large_model_has_the_size_of_stable_diffusion() -> None:
    counts = {"": 0, "vae": 0, "text_encoder": 0}
    for key, shape in RANDOM_SD_1_5.shapes().items():
        prefix = key.split(".")[0]
        counts[prefix if prefix in counts else ""] += int(np.prod(shape))
    # Its text encoder has a small vocabulary.
    assert counts[""] == 859_520_964 and counts["vae"] == 83_653_863 and counts["text_encoder"] > 85_000_000
