"""What the C++ library records of a generation, against Python's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import derived

import ebca
from ebca.runtime import native

PROMPT = "a red circle and a blue square"
Sessions = tuple[native.Session, ebca.Session]


@pytest.fixture(scope="module")
def sessions(shapes: native.Engine, python_shapes: ebca.Engine) -> Iterator[Sessions]:
    with shapes.session() as session, python_shapes.session() as python:
        yield session, python


def painted(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def hole(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    return mask


ASKED: dict[str, dict[str, Any]] = {
    "no update": {},
    "gammas": {"gamma_attn": 0.01, "gamma_norm": 0.02},
    "no guidance": {"guidance_scale": 1.0, "gamma_norm": 0.01},
    "edits": {"gamma_norm": 0.001, "edits": [ebca.Edit("a green triangle", 1, 0.7, 0.001, 0.002)]},
    "subjects": {"subjects": ["red circle", "blue square"], "gamma_attn": 0.01},
    "RePaint": {"image": painted(64, 64), "mask": hole(64, 64), "gamma_norm": 0.01},
    "latents only": {"output": "latents"},
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("record", ["energies", "attention_maps", "both"])
def test_records_are_python_s(sessions: Sessions, name: str, record: str) -> None:
    session, python = sessions
    recorded = {"energies": True, "attention_maps": True} if record == "both" else {record: True}
    ask = {"steps": 2, "seed": 1, **ASKED[name]}
    made = session.generate(PROMPT, **ask, **recorded)
    expected = python.generate(PROMPT, **{"output": "np", **ask}, **recorded)
    assert np.array_equal(made.latents, expected.latents)
    if "energies" in recorded:
        assert expected.energies is not None
        assert made.attention_energies is not None and made.norm_energies is not None
        assert np.array_equal(made.attention_energies, expected.energies[:, :, 0])
        assert np.array_equal(made.norm_energies, expected.energies[:, :, 1])
        assert len(made.attention_energies) == len(made.timesteps)
    else:
        assert made.attention_energies is None and made.norm_energies is None
    if "attention_maps" in recorded:
        assert made.attention_maps is not None and expected.attention_maps is not None
        assert np.array_equal(made.attention_maps, expected.attention_maps)
        assert made.attention_maps.sum(1) == pytest.approx(1, abs=1e-5)
    else:
        assert made.attention_maps is None


def test_several_images_have_maps_of_their_own(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    """At a size whose layers are not multiples of each other."""
    prompts = [PROMPT, "a green star"]
    ask: dict[str, Any] = {"steps": 2, "seed": [1, 2], "energies": True, "attention_maps": True}
    with shapes.session(40, 72, 2) as session, python_shapes.session(height=40, width=72, batch=2) as python:
        made, expected = session.generate(prompts, **ask), python.generate(prompts, **ask)
    assert made.attention_maps is not None and made.attention_maps.shape == (2, 24, 10, 18)
    assert np.array_equal(made.attention_maps, expected.attention_maps)
    assert np.array_equal(np.stack([made.attention_energies, made.norm_energies], 2), expected.energies)


def test_float16_between_the_graphs_is_read(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    folder = derived.with_float16_between(shapes_dir, tmp_path / "engine", ops=True)
    ask: dict[str, Any] = {"steps": 1, "seed": 1, "gamma_norm": 0.01, "energies": True, "attention_maps": True}
    with ebca.load(folder, backend="onnxruntime") as opened, opened.session() as python:
        expected = python.generate(PROMPT, **ask)
    with library.open(folder) as engine, engine.session() as session:
        made = session.generate(PROMPT, **ask)
    assert np.array_equal(made.attention_maps, expected.attention_maps)
    assert np.array_equal(np.stack([made.attention_energies, made.norm_energies], 2), expected.energies)


def test_recording_changes_no_image(sessions: Sessions) -> None:
    ask: dict[str, Any] = {"steps": 2, "seed": 1, "gamma_norm": 0.01}
    plain = sessions[0].generate(PROMPT, **ask)
    made = sessions[0].generate(PROMPT, **ask, energies=True, attention_maps=True)
    assert np.allclose(made.latents, plain.latents, atol=1e-5)
    assert np.array_equal(sessions[0].generate(PROMPT, **ask).latents, plain.latents)


def test_a_recorded_call_is_cancelled(sessions: Sessions) -> None:
    with pytest.raises(ebca.CancelledError, match="cancelled after 1 of"):
        sessions[0].generate(PROMPT, steps=3, attention_maps=True, on_step=lambda info: False)


def test_a_value_that_is_not_finite_is_named(sessions: Sessions) -> None:
    for record in ("energies", "attention_maps"):
        with pytest.raises(ebca.NumericalError, match=r"the attention of layer|segment"):
            sessions[0].generate(PROMPT, steps=2, seed=1, gamma_norm=1e38, gamma_attn=1e38, **{record: True})
