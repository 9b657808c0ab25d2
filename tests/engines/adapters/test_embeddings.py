"""Textual inversions: new rows of the text encoder's table, new tokens, and bad files."""

from pathlib import Path

import numpy as np
import pytest
from helpers import loras

import ebca
from ebca.engines.adapters.derived import EmbeddingFile, LoraFile, derive
from ebca.engines.adapters.onnx_table import Growth, grown
from ebca.engines.contract import weights as stored
from ebca.engines.contract.directory import EngineDirectory
from ebca.errors import EngineError, ParameterError

WIDTH = 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


def written(folder: Path, name: str, values: np.ndarray) -> Path:
    return loras.write(folder / f"{name.strip('<>')}.safetensors", {name: values})


def test_a_token_and_one_of_several_vectors(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    one, several = written(tmp_path, "<cat>", vectors(1)[0]), written(tmp_path, "emb_params", vectors(3, 1))
    with ebca.load(base.path, embedding=[one, f"{several}=<style>"]) as engine:
        manifest = engine.manifest
        assert manifest.derived is not None
        assert [adapter.token for adapter in manifest.derived.adapters] == ["<cat>", "<style>"]
        tokenizer = engine.tokenizer
        plain = ebca.load(base.path).tokenizer
        first = len(plain._backend.get_vocab())
        prompt = "a photo of <cat> in <Style>, <cat>"
        ids = tokenizer.encode([prompt]).ids[0].tolist()
        like = plain.encode(["a photo of cat in dog cat cat, cat"]).ids[0].tolist()
        places = [4, 6, 7, 8, 10]
        assert [ids[i] for i in places] == [first, first + 1, first + 2, first + 3, first]
        assert [x for i, x in enumerate(ids) if i not in places] == [x for i, x in enumerate(like) if i not in places]
        tokens = tokenizer.encode([prompt]).tokens[0]
        assert tokens[6:9] == ["<style>", "<style>_1", "<style>_2"]
        assert tokenizer.find_words(prompt, ["<style>", "<cat>"]) == {"<style>": [6, 7, 8], "<cat>": [4, 10]}
        # What is cut off begins with the token whose vectors do not all fit.
        long = "cat " * 73 + "<style> dog"
        assert tokenizer.encode([long]).truncated == ["<style> dog"]
        sizes = {name: record.size for name, record in manifest.files.items()}
        found = stored.parse(engine.directory.read("weights.json"), sizes)["text_encoder"]
    table = found[stored.EMBEDDINGS]
    assert table.shape == (first + 4, WIDTH)
    values = np.fromfile(engine.directory.file(table.copies[0].file), np.float32, first * WIDTH + 4 * WIDTH,
                         offset=table.copies[0].offset).reshape(table.shape)  # fmt: skip
    np.testing.assert_array_equal(values[first:], np.concatenate([vectors(1), vectors(3, 1)]))


def _bytes(directory: EngineDirectory, weight: stored.StoredWeight) -> np.ndarray:
    copy = weight.copies[0]
    return np.fromfile(directory.file(copy.file), np.uint8, weight.nbytes(copy), offset=copy.offset)


def test_everything_behind_the_table_has_moved(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    found = derive(base, [], [EmbeddingFile(written(tmp_path, "<cat>", vectors(5)))])
    found.verify()
    names = ("weights.json", "text_encoder.onnx.data")
    maps = [
        stored.parse(d.read(names[0]), {n: r.size for n, r in d.manifest.files.items()})["text_encoder"]
        for d in (base, found)
    ]
    moved = 0
    for name in maps[0]:
        if name == stored.EMBEDDINGS:
            continue
        pair = [_bytes(d, weights[name]) for d, weights in zip((base, found), maps, strict=True)]
        np.testing.assert_array_equal(*pair)
        moved += maps[0][name].copies[0].offset != maps[1][name].copies[0].offset
    assert moved > 5
    assert found.manifest.files[names[1]].size - base.manifest.files[names[1]].size == 5 * WIDTH * 4


def test_prompts_without_the_token_keep_their_bits(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "<cat>", vectors(2))
    with ebca.load(base.path) as plain, plain.with_lora(embedding=path) as engine:
        ids = plain.tokenizer.encode(["a red cat"]).ids
        np.testing.assert_array_equal(plain.encode(ids).contexts, engine.encode(ids).contexts)
        other = engine.tokenizer.encode(["a red <cat>"]).ids
        assert np.abs(engine.encode(other).contexts - engine.encode(ids).contexts).max() > 1e-2


def test_with_a_lora_at_once(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    path, lora = written(tmp_path, "<cat>", vectors(1)), loras.write(tmp_path / "a.safetensors")
    both = derive(base, [LoraFile(lora)], [EmbeddingFile(path)])
    alone = derive(base, [LoraFile(lora)])
    with ebca.load(both.path) as a, ebca.load(alone.path) as b:
        ids = b.tokenizer.encode(["a red cat"]).ids
        np.testing.assert_array_equal(a.encode(ids).contexts, b.encode(ids).contexts)


def test_the_token_of_a_nameless_file_is_its_name(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "my-style.safetensors", {"emb_params": vectors(1)})
    with ebca.load(base.path, embedding=path) as engine:
        assert engine.tokenizer.encode(["a my-style cat"]).tokens[0][2] == "my-style"


@pytest.mark.parametrize(
    ("values", "token", "message"),
    [
        (
            {"<a>": np.ones((1, 48), np.float32)},
            None,
            r"vectors of shape \[1, 48\], and .* have 32 numbers; use an emb",
        ),
        ({"<a>": np.ones((1, 1, 32), np.float32)}, None, r"vectors of shape \[1, 1, 32\]"),
        ({"<a>": np.ones((0, 32), np.float32)}, None, "has 0 vectors"),
        ({"<a>": np.full(32, np.inf, np.float32)}, None, "values that are not finite"),
        ({"<a>": np.ones(32, np.float32), "<b>": np.ones(32, np.float32)}, None, "has 2 tensors; a textual inversion"),
        ({"<a>": np.ones(32, np.float32)}, "cat", "the token 'cat' of .* exists already; write .*=another-token"),
        ({"<a>": np.ones(32, np.float32)}, "<|ENDOFTEXT|>", "exists already"),
        ({"<a>": np.ones(32, np.float32)}, "two words", "'two words' cannot be a token"),
        ({"<a>": np.ones(32, np.float32)}, "", "'' cannot be a token"),
    ],
)
def test_bad_files(
    base: EngineDirectory,
    cache: Path,
    tmp_path: Path,
    values: dict[str, np.ndarray],
    token: str | None,
    message: str,
) -> None:
    path = loras.write(tmp_path / "e.safetensors", values)
    with pytest.raises(ParameterError, match=message) as caught:
        derive(base, [], [EmbeddingFile(path, token)])
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_the_same_token_twice(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    files = [
        EmbeddingFile(written(tmp_path, "<a>", vectors(1))),
        EmbeddingFile(written(tmp_path, "<b>", vectors(1)), "<A>"),
    ]
    with pytest.raises(ParameterError, match=r"the token '<A>' of .* exists already"):
        derive(base, [], files)


def test_pickled_files_are_refused(base: EngineDirectory, tmp_path: Path) -> None:
    (tmp_path / "e.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ParameterError, match=r"e\.pt' is not a \.safetensors file: .*pickled files can run code"):
        derive(base, [], [EmbeddingFile(tmp_path / "e.pt")])


def test_graphs_that_are_no_graphs() -> None:
    growth = Growth(0, 128, 10, 11, 32)
    for model in (b"\xff" * 20, b"\x3a\x7f", b"\x3a\x02\x2a\xff", b"\x08" + b"\xff" * 12):
        with pytest.raises(EngineError, match="cannot be read"):
            grown(model, growth)
    with pytest.raises(EngineError, match="has its table of tokens elsewhere"):
        grown(b"\x3a\x00", growth)


def test_an_edited_graph_is_what_onnx_would_write(base: EngineDirectory) -> None:
    onnx = pytest.importorskip("onnx")
    sizes = {name: record.size for name, record in base.manifest.files.items()}
    table = stored.parse(base.read("weights.json"), sizes)["text_encoder"][stored.EMBEDDINGS]
    growth = Growth(table.copies[0].offset, WIDTH * 4, table.shape[0], table.shape[0] + 2, WIDTH)
    for name in ("text_encoder.onnx", "text_encoder.ort.onnx"):
        contents = base.read(name)
        expected, found = onnx.load_from_string(contents), onnx.load_from_string(grown(contents, growth))
        for tensor in expected.graph.initializer:
            external = {entry.key: entry for entry in tensor.external_data}
            if not external or int(external["offset"].value) < growth.offset:
                continue
            if int(external["offset"].value) == growth.offset:
                tensor.dims[0] += 2
                external["length"].value = str(tensor.dims[0] * WIDTH * 4)
            else:
                external["offset"].value = str(int(external["offset"].value) + growth.added)
        kept = [
            v
            for v in expected.graph.value_info
            if [d.dim_value for d in v.type.tensor_type.shape.dim] != [table.shape[0], WIDTH]
        ]
        del expected.graph.value_info[:]
        expected.graph.value_info.extend(kept)
        assert found == expected
