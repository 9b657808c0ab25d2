"""Validation of requests against a manifest, without an engine."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ebca
from ebca.engines.contract.entries import SubjectLayers
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.validate import Target, Task, validate

SHAPE = (2, 4, 8, 8)
SCHEDULERS = {
    "default": "pndm",
    "config": {"prediction_type": "epsilon"},
    "tables": {"pndm": {}, "ddim": {}, "ddim_inverse": {}},
}


def target(*, in_channels: int = 4, vae: bool = True, text: bool = True, most: int | None = None) -> Target:
    unet = SimpleNamespace(
        in_channels=in_channels, out_channels=4, max_contexts=most, subject_layers=None, pooled_size=None
    )
    manifest = SimpleNamespace(
        unet=unet,
        vae=object() if vae else None,
        text_encoder=object() if text else None,
        guidance_scale=7.5,
        schedulers=SCHEDULERS,
    )
    return Target(manifest, SHAPE)  # type: ignore[arg-type]


def valid(where: Target | None = None, **fields: Any) -> Any:
    return validate(GenerateRequest.of(**{"prompt": "a cat"} | fields), where or target())


@pytest.mark.parametrize(
    ("fields", "channels", "task", "scheduler"),
    [
        ({}, 4, Task.TEXT_TO_IMAGE, "pndm"),
        ({"image": "a.png"}, 4, Task.IMAGE_TO_IMAGE, "ddim"),
        ({"image": "a.png", "strength": 1.0}, 4, Task.IMAGE_TO_IMAGE, "pndm"),
        ({"image": "a.png", "mask": "b.png"}, 4, Task.REPAINT, "RePaint"),
        ({"image": "a.png", "mask": "b.png"}, 9, Task.INPAINTING, "pndm"),
    ],
)
def test_the_task_and_the_scheduler_follow_from_the_inputs(
    fields: dict[str, Any], channels: int, task: Task, scheduler: str
) -> None:
    made = valid(target(in_channels=channels), **fields)
    assert (made.task, made.scheduler) == (task, scheduler)


@pytest.mark.parametrize(("default", "image_to_image"), [("euler", "euler"), ("dpmpp_2m", "ddim")])
def test_the_engines_default_serves_image_to_image_if_it_can(default: str, image_to_image: str) -> None:
    where = target()
    names = {"default": default, "image_to_image": image_to_image, "tables": {default: {}, "ddim": {}}}
    where.manifest.schedulers = {**SCHEDULERS, **names}  # type: ignore[misc]
    assert valid(where).scheduler == default
    assert valid(where, image="a.png").scheduler == image_to_image
    assert valid(where, image="a.png", strength=1).scheduler == default


def test_the_error_about_a_scheduler_that_was_left_out_says_why() -> None:
    where = target()
    tables = {"tables": {"pndm": {}, "euler": {}}, "left_out": {"ddim": "it is not finite"}}
    where.manifest.schedulers = {**SCHEDULERS, **tables}  # type: ignore[misc]
    line = "scheduler 'DDIM' was left out of this engine: it is not finite; available: pndm, euler"
    with pytest.raises(ebca.ParameterError, match=line):
        valid(where, scheduler="DDIM")


def test_defaults_that_depend_on_the_engine_are_filled_in() -> None:
    made = valid(image="a.png", steps=10)
    assert (made.guidance_scale, made.guided, made.strength, made.skipped_steps) == (7.5, True, 0.8, 2)
    assert made.seeds is None and made.latents is None and made.repaint == ebca.RePaint()
    assert valid(guidance_scale=1).guided is False
    assert valid(seed=3).seeds == (3,) and valid(seed=[3, 4]).seeds == (3, 4)
    assert valid(scheduler="PLMS").scheduler == "pndm"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"output": "jpeg"}, "output is 'jpeg'"),
        ({"mask": "b.png"}, "a mask was given without an image"),
        ({"strength": 0.5}, "strength was given without"),
        ({"image": "a.png", "mask": "b.png", "strength": 0.5}, "strength and mask do not go together"),
        ({"image": "a.png", "strength": 0.0}, "strength is 0"),
        ({"image": "a.png", "strength": 0.1, "steps": 5}, "leaves no step"),
        ({"repaint": ebca.RePaint()}, "repaint was given without"),
        ({"image": "a.png", "mask": "b.png", "scheduler": "ddim"}, "RePaint has steps of its own"),
        ({"scheduler": "ddim_inverse"}, "available: pndm, ddim"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"norm_factor": "x"}, "norm_factor is x"),
        ({"edits": ebca.Edit("a")}, "edits is one Edit"),
        ({"edits": ["a"]}, "edits holds 'a'"),
        ({"edits": [ebca.Edit("a", direction=2)]}, "direction 2"),
        ({"edits": [ebca.Edit()]}, "editing prompt 1 has both texts and embeddings, or neither"),
        ({"prompt": None}, "prompt has both texts and embeddings, or neither"),
        ({"prompt_embeds": np.zeros((2, 77, 8))}, "prompt has both texts and embeddings, or neither"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": [1, 2, 3]}, "seed has 3 values for a batch of 2"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "latents have shape [1, 4, 8, 8]"),
        ({"latents": np.full(SHAPE, np.inf)}, "latents have values that are not finite"),
        ({"token_weights": {"cat": "x"}}, "the factor of 'cat' in token_weights is x"),
        ({"token_weights": {1.5: 2.0}}, "a position in token_weights is 1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_error_names_the_broken_rule(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        valid(**fields)
    assert named in str(caught.value)


def test_the_error_names_what_the_engine_lacks() -> None:
    with pytest.raises(ebca.EngineError, match="has no VAE"):
        valid(target(vae=False))
    with pytest.raises(ebca.EngineError, match="no VAE to encode"):
        valid(target(vae=False), image="a.png", output="latents")
    with pytest.raises(ebca.EngineError, match="an inpainting model"):
        valid(target(in_channels=9))
    with pytest.raises(ebca.EngineError, match="takes 5 channels and gives 4"):
        valid(target(in_channels=5))
    with pytest.raises(ebca.ParameterError, match="2 editing prompts are more than the 1"):
        valid(target(most=2), edits=[ebca.Edit("a"), ebca.Edit("b")])
    with pytest.raises(ebca.ParameterError, match="guidance needs negative_prompt_embeds"):
        valid(target(text=False), prompt=None, prompt_embeds=np.zeros((2, 77, 8)))


def test_errors_carry_problem_and_remedy() -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        valid(mask="b.png")
    error = caught.value
    assert error.problem == "a mask was given without an image" and error.remedy
    assert str(error) == f"{error.problem}; {error.remedy}"


@pytest.mark.parametrize("fields", [{"subjects": "auto"}, {"regions": {"cat": (0, 0, 1, 1)}}])
def test_subjects_need_layers_for_them(fields: dict[str, Any]) -> None:
    where = target()
    with pytest.raises(ebca.EngineError) as caught:
        valid(where, **fields)
    assert str(caught.value) == "this engine directory has no layers for subjects; export it again"
    where.manifest.unet.subject_layers = SubjectLayers((0,), (0,))  # type: ignore[misc]
    valid(where, **fields)


def test_fields_of_subjects_are_checked() -> None:
    valid(subjects=[], regions={})
    for fields, line in (
        ({"subjects": [["cat"]]}, "subjects has 1 lists for a batch of 2"),
        ({"regions": {"cat": (0, 0, 0, 0)}}, "the region of 'cat' is the box"),
        ({"subject_window": 11}, "subject_window is 11; give a number from 0.01 to 10"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 7, 8)), "subjects": "auto"}, "subjects are words of the"),
    ):
        with pytest.raises(ebca.ParameterError, match=line.replace("(", "[(]")):
            valid(**fields)  # type: ignore[arg-type]
