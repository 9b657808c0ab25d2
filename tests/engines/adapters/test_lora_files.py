"""Bad LoRA files: one line each, which names the file and the remedy, and nothing is left behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import loras, manifests

from ebca.engines.adapters import safetensors
from ebca.engines.adapters.asked import embedding_files, lora_files
from ebca.engines.adapters.derived import EmbeddingFile, LoraFile, derive
from ebca.engines.contract.directory import EngineDirectory, open_directory, sha256
from ebca.engines.contract.plans import LibraryPlans
from ebca.errors import EbcaError, EngineError, ParameterError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = np.ones((3, 32), np.float32), np.ones((32, 3), np.float32)


def pair(down: np.ndarray = DOWN, up: np.ndarray = UP, key: str = KEY) -> dict[str, np.ndarray]:
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": UP}, "is no LoRA: it has no key such as"),
        (pair(key="lora_unet_input_blocks_7_1_no_such_module"), "fits no weight of this engine .*made for this arch"),
        (pair(key="lora_te2_text_model_encoder_layers_0_mlp_fc1"), "fits no weight of this engine"),
        (
            pair(down=np.ones((3, 64), np.float32)),
            r"down \[3, 64\], up \[32, 3\] do not fit a weight of shape \[32, 32\]",
        ),
        (pair(up=np.ones((32, 4), np.float32)), r"do not fit a weight of shape \[32, 32\]"),
        (pair(down=np.zeros((0, 32), np.float32), up=np.zeros((32, 0), np.float32)), "it has rank 0"),
        (pair(down=np.full((3, 32), np.nan, np.float32)), "values that are not finite in 'lora_unet_down"),
        ({f"{KEY}.lora_down.weight": DOWN}, "it has only down; the file is incomplete"),
        ({f"{KEY}.alpha": np.ones((), np.float32)}, "it has only alpha; the file is incomplete"),
        (pair() | {f"{KEY}.alpha": np.ones(2, np.float32)}, "is not one number"),
        (pair() | {f"{KEY}.dora_scale": UP}, "is a DoRA .*merge it into the checkpoint"),
        (pair() | pair(key=KEY.replace("lora_unet_", "unet.")), "has two changes of 'down_blocks"),
    ],
)
def test_files_that_cannot_be_merged(
    base: EngineDirectory, cache: Path, tmp_path: Path, values: dict[str, np.ndarray], message: str
) -> None:
    path = loras.write(tmp_path / "bad.safetensors", values)
    with pytest.raises(ParameterError, match=message) as caught:
        derive(base, [LoraFile(path)])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_scale_that_is_no_number(base: EngineDirectory, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "a.safetensors")
    with pytest.raises(ParameterError, match=r"the scale of .* is nan; give a finite number"):
        derive(base, [LoraFile(path, float("nan"))])


def test_values_beyond_the_stored_type(base: EngineDirectory, cache: Path, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "a.safetensors")
    with pytest.raises(ParameterError, match="has values beyond float32; give a smaller scale"):
        derive(base, [LoraFile(path, 1e39)])
    assert not list(cache.iterdir())


def test_keys_that_fit_nothing_are_named(base: EngineDirectory, tmp_path: Path) -> None:
    more = {f"lora_unet_other_{index}.lora_down.weight": DOWN for index in range(5)}
    path = loras.write(tmp_path / "a.safetensors", pair() | more)
    with pytest.warns(UserWarning, match=r"5 of 7 tensors fit nothing .* \('lora_unet_other_0.*, \.\.\.\)"):
        derive(base, [LoraFile(path)])


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _long_header(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


def _header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        contents = path.read_bytes()
        length = int.from_bytes(contents[:8], "little")
        header = json.loads(contents[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + contents[8 + length :])

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "instead of"),
        (_long_header, "the length of its header is wrong"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "pickled files can run code"),
        (lambda path: path.write_bytes(b""), "the length of its header"),
        (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"), "instead of an object"),
        (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"\xff\xff"), "its header is no text"),
        (_header(lambda h: h["a"].update(dtype="F8_E4M3")), "a.dtype is 'F8_E4M3'"),
        (_header(lambda h: h["a"].update(shape=[-1, 2])), "instead of an integer"),
        (_header(lambda h: h["a"].update(shape=[1 << 20, 1 << 20])), "instead of a tensor whose bytes fit its shape"),
        (_header(lambda h: h["a"].update(data_offsets=[8, 0])), "instead of a tensor whose bytes fit its shape"),
        (_header(lambda h: h["a"].pop("data_offsets")), "a.data_offsets is missing"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = loras.write(tmp_path / "a.safetensors", {"a": np.ones((2, 2), np.float32)})
    damage(path)
    with pytest.raises(ParameterError, match=f"a.safetensors' is not a .safetensors file: .*{message}"):
        safetensors.read(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'.*/a' cannot be read: No such file"):
        safetensors.read(tmp_path / "a")
    with pytest.raises(ParameterError, match="is a folder"):
        safetensors.read(tmp_path)


def test_every_type_is_read_as_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.tensor([[1.5, -2.0], [0.25, 3.0]])
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    save_file({str(t): values.to(t) for t in types} | {"i": values.to(torch.int32)}, tmp_path / "a.safetensors")
    file = safetensors.read(tmp_path / "a.safetensors")
    for name in map(str, types):
        assert file.array(name).dtype == np.float32 and file.array(name).tolist() == values.tolist()
    assert file.array("i").tolist() == [[1, -2], [0, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(weights=None), "does not say where its weights lie.*; export the engine again"),
        (
            lambda m: m.update(derived={"base": "/base", "adapters": []}),
            "has LoRAs or embeddings already; give all of them at once, with the engine '/base'",
        ),
    ],
)
def test_engines_that_cannot_be_changed(
    base: EngineDirectory, tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    from helpers.tiny import changed_copy

    engine = open_directory(changed_copy(base.path, tmp_path / "engine", change))
    with pytest.raises(EbcaError, match=message):
        derive(engine, [LoraFile(loras.write(tmp_path / "a.safetensors"))])


def _record(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight["copies"][0].update(offset=1 << 40),
        lambda weight: weight["copies"][0].update(file="../secret"),
        lambda weight: weight["copies"][0].update(dtype="int8"),
        lambda weight: weight.update(shape=[0, 1]),
    ],
)
def test_a_broken_list_of_weights(base: EngineDirectory, tmp_path: Path, change: Callable[[dict], None]) -> None:
    shutil.copytree(base.path, tmp_path / "engine")
    path = tmp_path / "engine" / "weights.json"
    document = json.loads(path.read_text())
    change(next(iter(document["unet"].values())))
    path.write_text(json.dumps(document))
    manifests.edit(tmp_path / "engine", lambda m: m["files"].update({"weights.json": _record(path)}))
    with pytest.raises(EngineError, match=r"weights\.json is broken: .*export the engine again"):
        derive(open_directory(tmp_path / "engine"), [LoraFile(loras.write(tmp_path / "a.safetensors"))])


def test_arguments(tmp_path: Path) -> None:
    odd = tmp_path / "a:1"
    odd.write_bytes(b"")
    assert lora_files("a.safetensors:-0.5") == (LoraFile(Path("a.safetensors"), -0.5),)
    assert lora_files([str(odd), Path("b:2"), ("c", 3), "C:\\d"]) == (
        *(LoraFile(odd), LoraFile(Path("b:2")), LoraFile(Path("c"), 3.0), LoraFile(Path("C:\\d"))),
    )
    assert lora_files(("c", 3)) == (LoraFile(Path("c"), 3.0),) and lora_files(()) == ()
    assert embedding_files(["a=<b>", Path("c=d"), ("e", "f")]) == (
        *(EmbeddingFile(Path("a"), "<b>"), EmbeddingFile(Path("c=d")), EmbeddingFile(Path("e"), "f")),
    )
    for bad in (1, [None], [("a", "b")], [("a", True)]):
        with pytest.raises(ParameterError, match="lora has"):
            lora_files(bad)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="embedding has"):
        embedding_files([("a", 1)])  # type: ignore[list-item]


def test_plans_hold_their_own_weights(base: EngineDirectory, tmp_path: Path) -> None:
    plans = LibraryPlans("1", ("8.9",), "linux-x86_64", (), {})
    engine = EngineDirectory(base.path, replace(base.manifest, plans={"tensorrt-rtx": plans}))
    with pytest.raises(
        EngineError, match=r"has plans of tensorrt-rtx.*; export it again with --lora, or without plans"
    ):
        derive(engine, [LoraFile(loras.write(tmp_path / "a.safetensors"))])
