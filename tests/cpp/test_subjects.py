"""Subjects and regions of the library against the Python session: the same bits, and the same refusals."""

import shutil
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import manifests

import ebca
from ebca.errors import EngineError, ParameterError
from ebca.runtime import native
from ebca.runtime.native.structures import Region, Result

PROMPT = "a red circle and a blue square"
SUBJECTS = ["red circle", "blue square"]

Sessions = tuple[native.Session, ebca.Session]


@pytest.fixture(scope="module")
def sessions(shapes: native.Engine, python_shapes: ebca.Engine) -> Iterator[Sessions]:
    session = shapes.session()
    with python_shapes.session() as python:
        yield session, python
    session.close()


def white(height: int, width: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 :, left:right] = 255
    return mask


def compare(sessions: Sessions, prompt: Any = PROMPT, **given: Any) -> native.Result:
    """Both make the same call; returns the library's result, which is equal."""
    given = {"steps": 4, "output": "latents", **given}
    made, expected = sessions[0].generate(prompt, **given), sessions[1].generate(prompt, **given)
    assert made.task == expected.parameters["task"]
    assert np.array_equal(made.latents, expected.latents)
    return made


def test_tasks_with_images(sessions: Sessions) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    given: dict[str, Any] = {"image": image, "seed": 3, "subjects": SUBJECTS}
    made = compare(sessions, **given)
    assert not np.array_equal(made.latents, compare(sessions, **{**given, "subjects": None}).latents)
    painted = {**given, "mask": white(64, 64, 10, 50), "repaint": ebca.RePaint(1, 2), "gamma_attn": 0.01}
    # One strength per step, which the evaluations of a jump repeat.
    regions = {"red circle": white(64, 64, 5, 30)}
    made = compare(sessions, **painted, subject_exclusion=[3.0, 2.0, 1.0, 0.5], regions=regions)
    assert made.task == "repaint" and len(made.timesteps) > 4


def test_several_images_of_another_size(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    """Prompts with different words and numbers of subjects; masks that are resized to the byte."""
    session = shapes.session(64, 96, 2)
    with python_shapes.session(64, 96, 2) as python:
        both = session, python
        made = compare(both, seed=[4, 5], subjects=SUBJECTS)
        # A session goes from one number of groups to others, and back.
        compare(both, seed=[4, 5], subjects=["red", "circle", "square"])
        compare(both, seed=[4, 5])
        assert np.array_equal(made.latents, compare(both, seed=[4, 5], subjects=SUBJECTS).latents)
        prompts = ["a red circle and a blue square", "a blue square, a green circle"]
        regions = {"green circle": white(200, 300, 20, 140), "red circle": white(43, 64, 1, 30)}
        compare(both, prompts, seed=1, subjects=["blue square"], regions=regions, negative_prompt="a circle")
        # Nothing to do for the second image.
        compare(both, [PROMPT, "a triangle"], seed=1, regions={"red circle": white(64, 96, 0, 50)})
    session.close()


@pytest.mark.parametrize("size", [(64, 72), (72, 64), (160, 64)])
def test_regions_on_grids_of_any_shape(
    shapes: native.Engine, python_shapes: ebca.Engine, size: tuple[int, int]
) -> None:
    """Pixels per cell are no whole number for some of them."""
    session = shapes.session(*size)
    with python_shapes.session(*size) as python:
        slanted = np.tri(*size, k=-5, dtype=np.uint8) * 255
        compare((session, python), seed=1, steps=2, regions={"red circle": slanted, "square": 255 - slanted})
    session.close()


WRONG: dict[str, dict[str, Any]] = {
    "not in the prompt": {"subjects": ["red circle", "green cat"]},
    "beyond the limit": {
        "prompt": "very " * 80 + "red circle",
        "subjects": ["red circle"],
        "long_prompts": False,
    },
    "repeated": {"subjects": ["circle", "Circle"]},
    "overlap": {"subjects": ["red circle", "a red"]},
    "too many": {"prompt": "circle " * 17, "subjects": ["circle"] * 17},
    "empty": {"subjects": ["red circle", " "]},
    "empty phrase of a region": {"regions": {"": white(64, 64, 0, 9)}},
    "embeddings": {"prompt": None, "prompt_embeds": np.zeros((1, 24, 128), np.float32), "subjects": SUBJECTS},
    "window": {"subjects": SUBJECTS, "subject_window": 0.001},
    "window that is no number": {"subject_window": float("nan")},
    "exclusion": {"subjects": SUBJECTS, "subject_exclusion": ebca.Schedule.step(1001.0, 0.5)},
    "balance": {"subject_balance": -1.0},
    "schedule": {"subject_balance": [1.0, 2.0]},
    "aspect": {"regions": {"red circle": white(64, 96, 0, 9)}},
    "region without a place": {"regions": {"red circle": white(64, 64, 0, 0)}},
    "region of nothing": {"regions": {"green cat": white(64, 64, 0, 9)}},
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals_are_python_s(sessions: Sessions, name: str) -> None:
    given = {"prompt": PROMPT, "steps": 4, "output": "latents", **WRONG[name]}
    told: list[str] = []
    for session in sessions:
        with pytest.raises(ParameterError) as refused:
            session.generate(**given)
        # What is wrong with a schedule is the same; what else may be given is not.
        told.append(refused.value.problem if name == "schedule" else str(refused.value))
    # The fields of embeddings have other names.
    assert told[0].replace("prompt.embeds", "prompt_embeds") == told[1]


def test_a_subject_that_is_alone_is_left_out_with_a_warning(
    library: native.Library, sessions: Sessions, shapes_dir: Path
) -> None:
    lines: list[str] = []
    given: dict[str, Any] = {"steps": 2, "seed": 1, "output": "latents", "subjects": ["red circle"]}
    with library.open(shapes_dir, log=lambda level, line: lines.append(line)) as engine, engine.session() as session:
        made = session.generate(PROMPT, **given)
    with pytest.warns(UserWarning, match="only subject") as warned:
        expected = sessions[1].generate(PROMPT, **given)
    assert np.array_equal(made.latents, expected.latents)
    assert lines == [str(one.message) for one in warned]


def test_a_map_that_no_kernel_holds_is_refused(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    session = shapes.session(512, 528)
    with python_shapes.session(512, 528) as python:
        told = []
        for one in (session, python):
            with pytest.raises(ParameterError, match="map on which subjects are placed") as refused:
                one.generate(PROMPT, subjects=SUBJECTS, output="latents")
            told.append(str(refused.value))
        assert told[0] == told[1]
    session.close()


def test_an_engine_without_layers_for_subjects(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(shapes_dir, folder)
    manifests.edit(folder, lambda data: data["unet"].pop("subject_layers"))
    with library.open(folder) as engine, engine.session() as session:
        with pytest.raises(EngineError, match="no layers for subjects; export it again"):
            session.generate(PROMPT, subjects=SUBJECTS)
        session.generate(PROMPT, steps=1, output="latents")


def test_null_phrases_are_refused(library: native.Library, shapes: native.Engine) -> None:
    """A count without a list, and lists with holes."""
    session = shapes.session()
    for fields, message in (
        ({"subject_count": 2}, "subjects is NULL, but 2 are announced"),
        ({"subject_count": 1, "subjects": (c_char_p * 1)()}, "subjects[0] is NULL"),
        ({"region_count": 1}, "regions is NULL, but 1 are announced"),
        ({"region_count": 1, "regions": (Region * 1)()}, "regions[0].subject is NULL"),
    ):
        params = library.init("generate_params")
        for name, value in fields.items():
            setattr(params, name, value)
        out = POINTER(Result)()
        assert library.lib.ebca_session_generate(session.handle, byref(params), byref(out)) == 1
        assert message in library.last_error()
    session.close()
