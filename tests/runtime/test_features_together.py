"""Everything that people use at once: each feature does something, and none leaves anything behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import loras
from helpers.pipelines import sample_image

import ebca

PROMPT = "a (red circle:1.3) BREAK and a blue square in the style of <mood>, " + "very detailed, " * 30
EVERYTHING: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "[blurry]",
    "steps": 4,
    "seed": 3,
    "scheduler": "euler_ancestral",
    "clip_skip": 1,
    "gamma_attn": 0.01,
    "gamma_norm": 0.02,
    "token_weights": {"<mood>": 2.0},
    "edits": [ebca.Edit("a (green:1.2) circle", alpha=0.5)],
    "subjects": ["red circle", "blue square"],
    "control": [ebca.Control(sample_image(1), 0.7, name="canny"), ebca.Control(sample_image(2), name="depth")],
    "image": sample_image(5),
    "strength": 0.75,
    "output": "latents",
}
LESS: dict[str, dict[str, Any]] = {
    "weights": {"prompt_weighting": False, "subjects": None},
    "long prompts": {"long_prompts": False, "subjects": None, "token_weights": None},
    "clip skip": {"clip_skip": None},
    "noise of steps": {"scheduler": "euler"},
    "updates": {"gamma_attn": 0, "gamma_norm": 0, "token_weights": None},
    "token weights": {"token_weights": None},
    "edits": {"edits": ()},
    "subjects": {"subjects": None},
    "one ControlNet": {"control": EVERYTHING["control"][:1]},
    "ControlNets": {"control": ()},
    "image": {"image": None, "strength": None},
}


@pytest.fixture(scope="module")
def session(tiny_controlled_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ebca.Session]:
    folder = tmp_path_factory.mktemp("adapters")
    lora = loras.write(folder / "style.safetensors")
    vectors = np.random.default_rng(1).standard_normal((2, 32), np.float32)
    mood = loras.write(folder / "mood.safetensors", {"<mood>": vectors})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EBCA_CACHE_DIR", str(folder / "cache"))
        engine = ebca.load(tiny_controlled_dir, lora=[(lora, 0.4)], embedding=mood)
        with engine, engine.session(64, 64) as session:
            yield session


@pytest.fixture(scope="module")
def latents(session: ebca.Session) -> np.ndarray:
    made = session.generate(**EVERYTHING).latents
    assert made.shape == (1, 4, 8, 8) and np.isfinite(made).all()
    return made


@pytest.mark.parametrize("less", LESS)
def test_each_feature_does_something_and_leaves_nothing_behind(
    session: ebca.Session, latents: np.ndarray, less: str
) -> None:
    without = session.generate(**{**EVERYTHING, **LESS[less]}).latents
    assert np.isfinite(without).all() and np.abs(without - latents).max() > 1e-4
    np.testing.assert_array_equal(session.generate(**EVERYTHING).latents, latents)


def test_telemetry_changes_no_bit(session: ebca.Session, latents: np.ndarray) -> None:
    result = session.generate(**EVERYTHING, energies=True, attention_maps=True)
    np.testing.assert_array_equal(result.latents, latents)
    assert result.energies is not None and result.attention_maps is not None


def test_lora_and_embedding_do_something(session: ebca.Session, latents: np.ndarray, tiny_controlled_dir: Path) -> None:
    with ebca.load(tiny_controlled_dir) as base, base.session(64, 64) as other:
        plain = other.generate(**{**EVERYTHING, "token_weights": None, "prompt": PROMPT.replace("<mood>", "mood")})
    assert np.abs(plain.latents - latents).max() > 1e-4
    np.testing.assert_array_equal(session.generate(**EVERYTHING).latents, latents)
