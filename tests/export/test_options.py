"""The rules about export options, each in one place, and what errors call an option."""

from typing import Any

import pytest

from ebca.errors import ParameterError
from ebca.export import options
from ebca.export.options import DEFAULT_STEPS, ExportOptions
from ebca.export.plans.shapes import PlanOptions

FP16 = {"precision": "fp16", "compute": "fp16"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "fp16"},
        {**FP16, "vae_float32": True, "with_full_unet": True, "with_full_unet_updates": True},
        {**FP16, "plans": PlanOptions("tensorrt-rtx"), "with_full_unet": True},
        {**FP16, "plans": PlanOptions("tensorrt"), "with_full_unet_updates": True},
        {"scheduler_steps": (1, 1000)},
    ],
)
def test_options_that_go_together_pass(settings: dict[str, Any]) -> None:
    ExportOptions(**settings).validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int8"}, "precision 'int8' is unknown; choose one of fp32, fp16"),
        ({"compute": "int8"}, "compute 'int8' is unknown; choose one of fp32, fp16"),
        ({"compute": "fp16"}, "compute is fp16 and precision is fp32; give precision fp16"),
        ({"plans": PlanOptions("tensorrt")}, "plans are built from graphs that compute in float16; give compute fp16"),
        (
            {**FP16, "plans": PlanOptions("tensorrt-rtx"), "with_full_unet_updates": True},
            "tensorrt-rtx takes no plugins, and <with_full_unet_updates> needs one; "
            "give <library> tensorrt, or leave it out",
        ),
        ({**FP16, "plans": PlanOptions("tensorrt", max_contexts=0)}, "<max_contexts> is 0; give 1 or more"),
        ({"scheduler_steps": (20, 0)}, "<scheduler_steps> has 0; a step count lies between 1 and 1000"),
        ({"scheduler_steps": (1001,)}, "<scheduler_steps> has 1001; a step count lies between 1 and 1000"),
        ({"guidance_scale": float("nan")}, "<guidance_scale> is nan; give a number from -1e+06 to 1e+06"),
        ({"guidance_scale": 1e7}, "<guidance_scale> is 10000000.0; give a number from -1e+06 to 1e+06"),
    ],
)
def test_options_that_do_not_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        ExportOptions(**settings).validate(lambda name: f"<{name}>")
    assert str(caught.value) == message


def test_step_counts_are_1_to_200_and_those_asked_for_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DEFAULT_STEPS", DEFAULT_STEPS)
    assert ExportOptions(scheduler_steps=(255, 3, 255)).all_steps == [*range(1, 201), 255]
