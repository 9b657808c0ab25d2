"""Runs with subjects: on the host, and on a device that works without the host."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import manifests
from helpers.driver import HostDriver, host_engine

import ebca
from ebca.errors import EngineError
from ebca.plugins.exclusive_attention import windows
from ebca.runtime.conditioning.schedules import Schedule
from ebca.runtime.engine import Engine

PROMPT = "a red square, a green triangle and a blue circle"
SUBJECTS = ["red square", "green triangle", "blue circle"]
SETTINGS: dict[str, Any] = {"steps": 4, "scheduler": "ddim", "seed": 5, "output": "latents"}


@pytest.fixture(scope="module")
def engine(shapes_dir: Path) -> Iterator[Engine]:
    with ebca.load(shapes_dir, "cpu", "onnxruntime") as opened:
        yield opened


def latents(engine: Engine, prompt: str | list[str] = PROMPT, batch: int = 1, **settings: Any) -> np.ndarray:
    with engine.session(batch=batch) as session:
        return session.generate(prompt, **{**SETTINGS, **settings}).latents


def close(made: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for sums in another order: a few roundings of float32 per evaluation."""
    return bool(np.abs(made - expected).max() <= 1e-4 * np.abs(expected).max())


def test_strengths_of_zero_change_no_bit(engine: Engine) -> None:
    off = latents(engine, gamma_attn=0.003)
    none = latents(engine, gamma_attn=0.003, subjects=SUBJECTS, subject_exclusion=0, subject_balance=0)
    assert np.array_equal(off, none)
    assert not close(latents(engine, gamma_attn=0.003, subjects=SUBJECTS), off)


def test_strengths_begin_and_end_with_their_schedules(engine: Engine) -> None:
    """The first evaluation has no maps yet, so what counts there changes nothing."""
    off = latents(engine)
    first = [9.0, 0.0, 0.0, 0.0]
    assert np.array_equal(latents(engine, subjects=SUBJECTS, subject_exclusion=first, subject_balance=first), off)
    late = {"subject_exclusion": Schedule.step(2.0, 0.75), "subject_balance": 0.0}
    last = {"subject_exclusion": [0.0, 0.0, 0.0, 2.0], "subject_balance": 0.0}
    made = latents(engine, subjects=SUBJECTS, **late)
    assert np.array_equal(made, latents(engine, subjects=SUBJECTS, **last)) and not close(made, off)


def test_the_order_of_subjects_does_not_matter(engine: Engine) -> None:
    made = latents(engine, subjects=SUBJECTS)
    assert close(latents(engine, subjects=SUBJECTS[::-1]), made)
    assert close(latents(engine, subjects="auto"), made)


def test_a_subject_alone_changes_nothing(engine: Engine) -> None:
    off = latents(engine, "a red square")
    with pytest.warns(UserWarning, match="'red square' is the only subject"):
        assert np.array_equal(latents(engine, "a red square", subjects=["red square"]), off)
    assert np.array_equal(latents(engine, "a red square", subjects="auto"), off)


def test_every_image_of_a_batch_has_its_own_subjects(engine: Engine) -> None:
    prompts = [PROMPT, "a blue star", "a cyan heart and a red cross"]
    made = latents(engine, prompts, 3, seed=[1, 2, 3], subjects="auto")
    for index, prompt in enumerate(prompts):
        assert close(made[index : index + 1], latents(engine, prompt, seed=index + 1, subjects="auto"))


def test_unconditional_rows_have_no_bias(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inner = windows.exclude

    def watched(arrays: dict[str, np.ndarray]) -> None:
        inner(arrays)
        seen.append((int(arrays["step"][0]), arrays["subjects"].tolist(), arrays["bias"].copy(), arrays["maps"].copy()))

    monkeypatch.setattr(windows, "exclude", watched)
    latents(engine, ["a cyan heart and a red cross", PROMPT], 2, subjects="auto", gamma_attn=0.003)
    # After each evaluation but the last; averages begin after the first.
    assert [step for step, *_ in seen] == [0, 1, 1]
    for _, counts, bias, maps in seen:
        assert counts == [0, 0, 2, 3] and bias.shape == (4, 1, 3, 64) and maps.shape == (2, 4, 3, 64)
        assert not bias[:2].any() and bias[2, 0, :2].any(axis=-1).all() and bias[3, 0].any(axis=-1).all()
        assert not bias[2, 0, 2].any() and not maps[:, 2, 2].any()
        # Shares of a softmax over tokens.
        assert (maps >= 0).all() and (maps.sum(axis=2) <= 1 + 1e-5).all() and maps[:, 2:, :2].any(axis=-1).all()


def test_a_region_moves_its_subject_from_the_first_evaluation_on(engine: Engine) -> None:
    regions = {"red square": (0.5, 0.0, 1.0, 0.5), "blue circle": (0.0, 0.5, 0.5, 1.0)}
    prompt = "a red square and a blue circle"
    one_step = {"steps": 1}
    assert not close(latents(engine, prompt, regions=regions, **one_step), latents(engine, prompt, **one_step))
    shares = []
    with engine.session(batch=8) as session:
        for settings in ({}, {"regions": regions, "subject_exclusion": 4.0}):
            made = session.generate(
                prompt, steps=15, scheduler="ddim", seed=list(range(8)), output="np", **settings
            ).images
            red = np.clip(made[..., 0] - made[..., 2], 0, None) ** 2
            blue = np.clip(made[..., 2] - made[..., 0], 0, None) ** 2
            shares.append(np.array([red[:, :32, 32:].sum() / red.sum(), blue[:, 32:, :32].sum() / blue.sum()]))
    # Anywhere, and then mostly in their quarters.
    assert (shares[0] < 0.4).all() and (shares[1] > shares[0] + 0.2).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"energies": True},
        {"attention_maps": True},
        {"on_step": lambda info: None},
        {"gamma_attn": 0.003, "energies": True},
    ],
)
def test_watching_a_run_does_not_change_it(engine: Engine, settings: dict[str, Any]) -> None:
    gamma = {"gamma_attn": settings.get("gamma_attn", 0.0)}
    expected = latents(engine, subjects=SUBJECTS, **gamma)
    assert close(latents(engine, subjects=SUBJECTS, **settings), expected)


def test_subjects_compose_with_edits_masks_and_repaint(engine: Engine) -> None:
    image, mask = np.full((64, 64, 3), 0.5, np.float32), np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    repaint = {"image": image, "mask": mask, "repaint": ebca.RePaint(jump_length=1, jump_count=2), "scheduler": None}
    edits = {"edits": [ebca.Edit("a purple star", direction=1, alpha=0.5, gamma_attn=0.003)]}
    for settings in (repaint, edits, {"guidance_scale": 1.0}, {"image": image, "strength": 0.75}):
        made, off = latents(engine, subjects=SUBJECTS, **settings), latents(engine, **settings)
        assert np.isfinite(made).all() and not close(made, off)


# ---- a device that runs without the host


@pytest.fixture(scope="module")
def on_host(shapes_dir: Path) -> tuple[Engine, HostDriver]:
    return host_engine(shapes_dir)


@pytest.mark.parametrize(
    "settings",
    [
        {"subjects": SUBJECTS},
        {"subjects": SUBJECTS, "gamma_attn": 0.003, "gamma_norm": 0.003},
        {"subjects": SUBJECTS, "subject_exclusion": [3.0, 2.0, 1.0, 0.0], "regions": {"blue circle": (0, 0, 0.5, 1)}},
        {"subjects": SUBJECTS, "guidance_scale": 1.0},
        {"subjects": SUBJECTS, "scheduler": "pndm"},
    ],
)
def test_a_device_makes_the_same(engine: Engine, on_host: tuple[Engine, HostDriver], settings: dict[str, Any]) -> None:
    assert close(latents(on_host[0], **settings), latents(engine, **settings))


def test_a_run_is_one_launch_and_other_subjects_need_no_new_recording(on_host: tuple[Engine, HostDriver]) -> None:
    engine, driver = on_host
    with engine.session() as session:
        session.generate(PROMPT, subjects=SUBJECTS, **SETTINGS)
        for settings in (
            {"subjects": SUBJECTS[::-1]},
            {"subjects": "auto", "subject_exclusion": 1.0, "subject_balance": [1.0, 0.0, 0.0, 2.0]},
            {"subjects": SUBJECTS, "subject_window": 0.3, "regions": {"red square": (0.0, 0.0, 0.5, 0.5)}},
        ):
            before = driver.count.copy()
            session.generate(PROMPT, **settings, **SETTINGS)  # type: ignore[arg-type]
            assert driver.count["launch"] - before["launch"] == 1
            assert driver.count["capture"] == before["capture"]
        before = driver.count.copy()
        session.generate(PROMPT, subjects=SUBJECTS, **SETTINGS, on_step=lambda info: None)
        assert driver.count["launch"] - before["launch"] == SETTINGS["steps"]


def test_a_run_does_not_know_the_one_before(on_host: tuple[Engine, HostDriver]) -> None:
    engine, _ = on_host
    with engine.session() as session:
        first = session.generate(PROMPT, subjects=SUBJECTS, **SETTINGS).latents
        session.generate("a cyan heart, a red cross and a blue star", subjects="auto", **{**SETTINGS, "seed": 9})
        assert np.array_equal(session.generate(PROMPT, subjects=SUBJECTS, **SETTINGS).latents, first)


# ---- what is recorded, and refused


def test_the_result_says_what_was_found(engine: Engine) -> None:
    with engine.session(batch=2) as session:
        made = session.generate([PROMPT, "a red square"], subjects="auto", **SETTINGS)
        assert made.parameters["subjects"] == [SUBJECTS, []]
        assert session.generate(PROMPT, subjects="auto", **SETTINGS).parameters["subjects"] == SUBJECTS
        assert "subject_exclusion" not in session.generate(PROMPT, **SETTINGS).parameters


def test_an_engine_without_layers_for_subjects_refuses_them(tmp_path: Path, shapes_dir: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(shapes_dir, folder)
    manifests.edit(folder, lambda data: data["unet"].update(subject_layers=None))
    with ebca.load(folder, "cpu") as engine, pytest.raises(EngineError, match="export"):
        latents(engine, subjects=SUBJECTS)
