"""Energies per evaluation and layer, and attention maps per token: their values, and that recording changes nothing."""

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import mask_image, sample_image  # noqa: E402
from helpers.tiny import TOKENS  # noqa: E402
from PIL import Image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.plugins.energy_attention import energy_attention  # noqa: E402
from ebca.runtime.execution.inspection import run_probed  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402
from ebca.runtime.telemetry.attention_maps import AttentionMaps, draw_attention  # noqa: E402
from ebca.runtime.telemetry.energies import require_plotting  # noqa: E402

PROMPT = "a lion with a crown"
ASK: dict[str, Any] = {"steps": 3, "seed": 1, "output": "latents", "gamma_attn": 0.03, "gamma_norm": 0.2}

# Probabilities in float32, over up to seven layers, against float64.
LIMIT = 1e-5


# --- attention maps


def probabilities(q: np.ndarray, k: np.ndarray, heads: int) -> np.ndarray:
    """q [N,H*d], k [T,H*d] -> [T,N] float64: softmax over the tokens, mean over the heads."""
    channels = q.shape[1] // heads
    queries, keys = (x.astype(np.float64).reshape(len(x), heads, channels) for x in (q, k))
    scores = np.exp(np.einsum("nhd,thd->hnt", queries, keys) / np.sqrt(channels))
    return (scores / scores.sum(-1, keepdims=True)).mean(0).T


def enlarged(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T,h,w] resized as masks are: bilinear with aligned corners."""
    torch_planes = torch.from_numpy(planes)[None]
    return torch.nn.functional.interpolate(torch_planes, size, mode="bilinear", align_corners=True)[0].numpy()


def test_one_layer_equals_a_reference_in_float64(engine: ebca.Engine) -> None:
    unet = engine.manifest.unet
    sizes = {"batch": 4, "contexts": 3, "tokens": 11, "height": 6, "width": 10}
    rng = np.random.default_rng(0)
    for layer, (height, width) in ((0, (6, 10)), (2, (3, 5))):
        spec = unet.layers[layer]
        channels = spec.heads * spec.head_dim
        q = rng.standard_normal((4, height * width, channels), np.float32)
        k = rng.standard_normal((4, 3, 11, channels), np.float32)
        maps = AttentionMaps(unet, sizes, images=2)
        maps(layer, q, k)
        assert maps.maps.shape == (2, 11, 6, 10) and maps.maps.dtype == np.float32
        for index, row in enumerate((2, 3)):
            expected = probabilities(q[row], k[row, 0], spec.heads).reshape(11, height, width)
            # An absolute error, since probabilities are at most 1.
            assert np.abs(maps.maps[index] - enlarged(expected, (6, 10))).max() <= 1e-6
        # The op uses the same probabilities: if v is the indicator of one token, the output is its map.
        v = np.zeros_like(k)
        v[:, 0, 4] = 1
        out = energy_attention(q, k, v, heads=spec.heads, weights=[[1.0, 0.0, 0.0]]).out
        mean = out[2].reshape(height * width, spec.heads, -1).mean((1, 2)).reshape(1, height, width)
        assert np.abs(maps.maps[0, 4] - enlarged(mean, (6, 10))[0]).max() <= 1e-6


def test_large_scores_do_not_overflow(engine: ebca.Engine) -> None:
    unet = engine.manifest.unet
    maps = AttentionMaps(unet, {"batch": 1, "contexts": 1, "tokens": 3, "height": 2, "width": 2}, images=1)
    channels = unet.layers[0].heads * unet.layers[0].head_dim
    k = np.zeros((1, 1, 3, channels), np.float32)
    k[0, 0, 1] = 100
    maps(0, np.full((1, 4, channels), 100, np.float32), k)
    assert np.array_equal(maps.maps[0, :, 0, 0], [0, 1, 0])


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_maps_of_one_evaluation_equal_pytorch(session: ebca.Session, guidance_scale: float) -> None:
    """All layers of the UNet in float64, from the queries and keys of its own projections."""
    result = session.generate(
        PROMPT, steps=1, scheduler="ddim", seed=1, guidance_scale=guidance_scale, attention_maps=True, output="latents"
    )
    unet = build_tiny().unet.double()
    seen: dict[str, Any] = {}
    layers = [(n, m) for n, m in unet.named_modules() if n.endswith("attn2")]
    for name, module in layers:
        for kind in ("to_q", "to_k"):
            getattr(module, kind).register_forward_hook(
                lambda _, __, out, key=f"{name}.{kind}": seen.__setitem__(key, out[0].numpy())
            )
    text = session.engine.encode(session.engine.tokenizer.encode([PROMPT]).ids).contexts
    with torch.no_grad():
        unet(torch.from_numpy(randn((1, 4, 8, 8), 1)).double(), 1, torch.from_numpy(text).double())
    expected = np.zeros((TOKENS, 8, 8))
    for name, module in layers:
        q, k = seen[f"{name}.to_q"], seen[f"{name}.to_k"]
        side = round(len(q) ** 0.5)
        plane = probabilities(q, k, module.heads).reshape(TOKENS, side, side)
        expected += enlarged(plane, (8, 8)) / len(layers)
    assert len(layers) == 7
    assert result.attention_maps is not None
    assert relative_l2(result.attention_maps[0], expected) <= LIMIT


def test_maps_are_means_over_the_evaluations(session: ebca.Session) -> None:
    result = session.generate(PROMPT, **ASK, attention_maps=True)
    assert result.attention_maps is not None
    singles = [_maps_of(session, evaluation) for evaluation in range(4)]
    assert relative_l2(result.attention_maps, np.mean(singles, 0)) <= 1e-6
    assert relative_l2(singles[0], singles[3]) > 1e-3


def _maps_of(session: ebca.Session, evaluation: int) -> np.ndarray:
    """Attention maps of a single evaluation of a run with ASK."""
    layers = len(session.engine.manifest.unet.layers)
    calls: list[int] = []
    before = AttentionMaps.__call__

    def one_only(self: AttentionMaps, layer: int, q: np.ndarray, k: np.ndarray) -> None:
        if len(calls) // layers == evaluation:
            before(self, layer, q, k)
        calls.append(layer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AttentionMaps, "__call__", one_only)
        maps = session.generate(PROMPT, **ASK, attention_maps=True).attention_maps
    assert maps is not None and calls == list(range(layers)) * 4
    return maps


@pytest.mark.parametrize("size", [(64, 64), (40, 72)], ids=str)
def test_the_tokens_sum_to_one_at_each_position(engine: ebca.Engine, size: tuple[int, int]) -> None:
    with engine.session(*size, batch=2) as session:
        edits = [ebca.Edit("snow", alpha=0.5, gamma_norm=0.1)]
        result = session.generate([PROMPT, "a cat"], **ASK, edits=edits, attention_maps=True)
    assert result.attention_maps is not None
    assert result.attention_maps.shape == (2, TOKENS, size[0] // 8, size[1] // 8)
    assert result.attention_maps.dtype == np.float32 and result.attention_maps.min() >= 0
    assert np.abs(result.attention_maps.sum(1) - 1).max() <= 1e-5


def test_each_image_has_its_own_maps(engine: ebca.Engine, session: ebca.Session) -> None:
    prompts = [PROMPT, "a red car in the snow"]
    with engine.session(64, 64, batch=2) as batch:
        together = batch.generate(prompts, **ASK | {"seed": [1, 2]}, attention_maps=True).attention_maps
    assert together is not None
    for i, prompt in enumerate(prompts):
        alone = session.generate(prompt, **ASK | {"seed": 1 + i}, attention_maps=True).attention_maps
        assert alone is not None
        assert relative_l2(together[i], alone[0]) <= LIMIT


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"edits": [ebca.Edit("snow", alpha=0.5, gamma_attn=0.02)], "guidance_scale": 1.0},
        {"image": sample_image(), "strength": 0.8},
        {"image": sample_image(), "mask": mask_image(), "repaint": ebca.RePaint(2, 2)},
        {"gamma_attn": 0.0, "gamma_norm": 0.0},
    ],
    ids=["text", "edits", "image", "repaint", "no-update"],
)
def test_recording_changes_no_result(session: ebca.Session, task: dict[str, Any]) -> None:
    plain = session.generate(PROMPT, **ASK | task)
    mapped = session.generate(PROMPT, **ASK | task, attention_maps=True)
    assert np.array_equal(mapped.latents, plain.latents)
    both = session.generate(PROMPT, **ASK | task, attention_maps=True, energies=True)
    # The variant of the op with energies sums in another order.
    assert relative_l2(both.latents, plain.latents) <= 5e-6
    assert both.attention_maps is not None and both.energies is not None and mapped.attention_maps is not None
    assert relative_l2(both.attention_maps, mapped.attention_maps) <= LIMIT
    assert len(both.energies) == len(both.timesteps) == len(plain.timesteps)
    assert np.array_equal(session.generate(PROMPT, **ASK | task).latents, plain.latents)


def test_nothing_is_recorded_by_default(session: ebca.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_probe(*args: object) -> None:
        raise AssertionError("a probe was run")

    monkeypatch.setattr("ebca.runtime.sampling.host.run_probed", no_probe)
    monkeypatch.setattr(AttentionMaps, "__init__", no_probe)
    result = session.generate(PROMPT, **ASK)
    assert result.attention_maps is None and result.energies is None


def test_maps_survive_the_next_call(session: ebca.Session) -> None:
    first = session.generate(PROMPT, **ASK, attention_maps=True).attention_maps
    assert first is not None
    kept = first.copy()
    session.generate("a cat", **ASK, attention_maps=True)
    assert np.array_equal(first, kept)


# --- drawing attention maps


@pytest.mark.parametrize(
    ("size", "tokens", "tile", "columns", "rows"),
    [
        ((64, 64), 3, (128, 128), 4, 1),
        ((512, 512), 5, (256, 256), 6, 1),
        ((200, 100), 7, (200, 100), 8, 1),
        ((100, 200), 8, (128, 256), 8, 2),
        ((128, 128), 0, (128, 128), 1, 1),
    ],
)
def test_the_sheet_has_one_tile_per_token(
    size: tuple[int, int], tokens: int, tile: tuple[int, int], columns: int, rows: int
) -> None:
    """Sizes are (width, height). Tiles are 128 to 256 pixels wide."""
    image = Image.new("RGB", size, "navy")
    maps = np.random.default_rng(0).random((77, 8, 8), np.float32)
    sheet = draw_attention(image, maps, [f"word{i}</w>" for i in range(tokens)])
    assert sheet.mode == "RGB"
    assert sheet.size == (columns * (tile[0] + 4) + 4, rows * (tile[1] + 18) + 4)
    # The first tile is the image.
    assert sheet.getpixel((4 + tile[0] // 2, 18 + tile[1] // 2)) == (0, 0, 128)


def test_a_tile_is_brightest_where_the_attention_to_its_token_is_highest() -> None:
    maps = np.zeros((2, 8, 8), np.float32)
    maps[0, :, 4:], maps[1, :, :4] = 1e-3, 0.9
    sheet = np.asarray(draw_attention(Image.new("RGB", (128, 128), "black"), maps, ["left", "right"]), np.float32)
    for index, bright in ((1, slice(96, 128)), (2, slice(0, 32))):
        tile = sheet[18:146, 4 + index * 132 :][:, :128].sum(-1)
        dark = slice(0, 32) if bright.start else slice(96, 128)
        assert tile[:, bright].min() > tile[:, dark].max() + 200
    # A constant map causes no division by zero.
    flat = draw_attention(Image.new("RGB", (128, 128)), np.full((1, 8, 8), 0.5), ["a"])
    assert np.isfinite(np.asarray(flat)).all()


# --- energies


@pytest.fixture(scope="module")
def measured(engine: ebca.Engine) -> ebca.Energies:
    with engine.session(64, 64, batch=2) as session:
        result = session.generate(PROMPT, **ASK, edits=[ebca.Edit("snow", alpha=0.5)], energies=True)
    assert result.energies is not None
    layers = tuple(layer.name for layer in engine.manifest.unet.layers)
    return ebca.Energies(result.timesteps, layers, result.energies)


def test_energies_have_a_value_per_evaluation_layer_row_and_context(measured: ebca.Energies) -> None:
    assert len(measured.timesteps) == 4 and len(measured.layers) == 7
    for values in (measured.attention, measured.norm, measured.total):
        assert values.shape == (4, 7, 4, 2) and np.isfinite(values).all()
    assert np.array_equal(measured.attention, measured.values[:, :, 0])
    assert np.array_equal(measured.norm, measured.values[:, :, 1])
    assert np.array_equal(measured.total, measured.attention + measured.norm)


def test_energies_equal_the_definition_at_the_first_layer(engine: ebca.Engine) -> None:
    """From the queries and keys that a probe gets."""
    sizes = {"batch": 2, "contexts": 1, "tokens": TOKENS, "height": 8, "width": 8}
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    executor = engine.executor(sizes)
    executor.sample[...] = np.repeat(randn((1, 4, 8, 8), 1), 2, 0)
    executor.timestep[...] = 1
    executor.contexts[...] = engine.encode(engine.tokenizer.encode(["", PROMPT]).ids).contexts[:, None]
    run_probed(executor, "energies", lambda layer, q, k: seen.setdefault(layer, (q.copy(), k.copy())) and None)
    assert sorted(seen) == list(range(7))
    for layer, (q, k) in seen.items():
        expected = energy_attention(q, k, k, heads=engine.manifest.unet.layers[layer].heads)
        assert relative_l2(executor.energies[layer, 0], expected.energy_attn) <= 1e-6
        assert relative_l2(executor.energies[layer, 1], expected.energy_norm) <= 1e-6


def test_a_probe_changes_no_bit(engine: ebca.Engine) -> None:
    sizes = {"batch": 2, "contexts": 1, "tokens": TOKENS, "height": 8, "width": 8}
    executor = engine.executor(sizes)
    executor.sample[...] = np.repeat(randn((1, 4, 8, 8), 1), 2, 0)
    executor.timestep[...] = 500
    executor.contexts[...] = engine.encode(engine.tokenizer.encode(["", PROMPT]).ids).contexts[:, None]
    executor.run("update")
    noise, contexts = executor.noise.copy(), executor.contexts_out.copy()
    run_probed(executor, "update", lambda layer, q, k: None)
    assert np.array_equal(executor.noise, noise) and np.array_equal(executor.contexts_out, contexts)


def test_there_is_one_record_per_evaluation_and_layer(measured: ebca.Energies) -> None:
    records = list(measured.records())
    assert len(records) == 4 * 7
    assert [(r["evaluation"], r["layer"]) for r in records] == [(i, n) for i in range(4) for n in measured.layers]
    record = records[7 * 2 + 3]
    assert list(record) == ["evaluation", "timestep", "layer", "attention", "norm", "total"]
    assert record["timestep"] == measured.timesteps[2]
    for name in ("attention", "norm", "total"):
        assert record[name] == getattr(measured, name)[2, 3].tolist()


def test_records_are_written_as_json_lines(measured: ebca.Energies, tmp_path: Path) -> None:
    measured.write_lines(tmp_path / "energies.jsonl")
    lines = (tmp_path / "energies.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(measured.records())
    measured.write_lines(tmp_path / "new" / "energies.jsonl")
    assert (tmp_path / "new" / "energies.jsonl").read_text(encoding="utf-8").splitlines() == lines
    with pytest.raises(ebca.ParameterError, match=r"'.*energies.jsonl/x' cannot be written: Not a directory"):
        measured.write_lines(tmp_path / "energies.jsonl" / "x")


def test_the_three_terms_are_plotted(measured: ebca.Energies, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured.plot(tmp_path / "energies.png")
    with Image.open(tmp_path / "energies.png") as image:
        assert 800 <= image.width <= 1600 and 250 <= image.height <= 800
        # More colours than an empty frame has.
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    one = ebca.Energies(measured.timesteps[:1], measured.layers, measured.values[:1, :, :, :1, :1])
    one.plot(tmp_path / "one.svg")
    assert "<svg" in (tmp_path / "one.svg").read_text(encoding="utf-8")
    for bad, why in (("energies.png/x.png", "Not a directory"), ("energies.txt", "not supported")):
        with pytest.raises(ebca.ParameterError, match=rf"'.*{bad}' cannot be written: .*{why}"):
            measured.plot(tmp_path / bad)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.usefixtures("no_matplotlib")
def test_the_error_without_matplotlib_says_what_to_install(measured: ebca.Energies, tmp_path: Path) -> None:
    for call in (require_plotting, lambda: measured.plot(tmp_path / "energies.png")):
        with pytest.raises(
            ebca.ParameterError, match=r"^an energy plot needs matplotlib; run `pip install 'ebca\[plot\]'`$"
        ):
            call()
    assert not (tmp_path / "energies.png").exists()
    measured.write_lines(tmp_path / "energies.jsonl")
