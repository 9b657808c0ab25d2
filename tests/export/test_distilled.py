"""UNets that are told their guidance scale, and what distilled checkpoints have by default."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import (  # noqa: E402
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from helpers.xl import BLOCKS, call_inputs  # noqa: E402

from ebca.export.checkpoint.defaults import XL_SCHEDULER_CONFIG  # noqa: E402
from ebca.export.checkpoint.model import Checkpoint  # noqa: E402
from ebca.export.checkpoint.supported import check_unet_supported  # noqa: E402
from ebca.export.distilled import default_guidance, with_embedded_guidance  # noqa: E402
from ebca.export.scheduler_tables import build_tables  # noqa: E402


@pytest.fixture(scope="module")
def told() -> UNet2DConditionModel:
    """A UNet that takes its guidance scale."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        time_cond_proj_dim=32,
    ).eval()


@pytest.mark.parametrize("asked", [None, 3.5])
def test_the_unet_has_the_guidance_of_diffusers_pipeline_built_in(
    told: UNet2DConditionModel, asked: float | None
) -> None:
    check_unet_supported(told.config)
    checkpoint = with_embedded_guidance(Checkpoint("x", told), asked)
    scale = 8.5 if asked is None else asked
    embed: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    condition = embed(None, torch.tensor([scale - 1]), embedding_dim=32)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8)
    with torch.no_grad():
        expected = told(sample, 499, text, timestep_cond=condition).sample
        other = told(sample, 499, text, timestep_cond=embed(None, torch.tensor([1.0]), embedding_dim=32)).sample
        got = checkpoint.unet(sample, 499, text).sample
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()  # of float32
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max()
    assert checkpoint.embedded_guidance == scale and default_guidance(checkpoint, asked) == 1
    assert f"{scale:g} is built in" in checkpoint.notices[-1]


def test_the_checkpoint_itself_does_not_change(told: UNet2DConditionModel) -> None:
    before = told.time_embedding.linear_1.bias.clone()
    made = with_embedded_guidance(Checkpoint("x", told), 5.0)
    assert torch.equal(told.time_embedding.linear_1.bias, before)
    assert told.config.time_cond_proj_dim == 32 and made.unet.config.time_cond_proj_dim is None
    assert "time_embedding.cond_proj.weight" in told.state_dict()
    assert "time_embedding.cond_proj.weight" not in made.unet.state_dict()
    assert with_embedded_guidance(made, None) is made


@pytest.mark.parametrize(
    ("class_name", "asked", "expected"),
    [("LCMScheduler", None, 1), ("TCDScheduler", None, 1), ("LCMScheduler", 2.0, 2), ("DDIMScheduler", None, 7.5)],
)
def test_default_guidance(told: UNet2DConditionModel, class_name: str, asked: float | None, expected: float) -> None:
    checkpoint = replace(Checkpoint("x", told), scheduler_config={"_class_name": class_name})
    assert default_guidance(checkpoint, asked) == expected


@pytest.fixture(scope="module")
def told_xl() -> UNet2DConditionModel:
    """A UNet of Stable Diffusion XL that takes its guidance scale, as LCM-SDXL."""
    torch.manual_seed(0)
    depths = {"transformer_layers_per_block": [1, 1, 2], "layers_per_block": 1}
    return UNet2DConditionModel(**{**BLOCKS, **depths, "time_cond_proj_dim": 16}).eval()


@pytest.mark.parametrize(("asked", "scale"), [(None, 5.0), (8.0, 8.0)])
def test_the_unet_of_xl_has_its_guidance_built_in(
    told_xl: UNet2DConditionModel, asked: float | None, scale: float
) -> None:
    """Without a wish, what diffusers' pipeline of Stable Diffusion XL takes."""
    check_unet_supported(told_xl.config)
    checkpoint = with_embedded_guidance(Checkpoint("x", told_xl), asked)
    embed: Any = StableDiffusionXLPipeline.get_guidance_scale_embedding
    condition = embed(None, torch.tensor([scale - 1]), embedding_dim=16).repeat(2, 1)
    feeds = {name: torch.from_numpy(value) for name, value in call_inputs(told_xl, 2, 1, 6, (8, 8)).items()}
    given: Any = {
        "encoder_hidden_states": feeds["contexts"][:, 0],
        "added_cond_kwargs": {name: feeds[name] for name in ("text_embeds", "time_ids")},
    }
    with torch.no_grad():
        expected = told_xl(feeds["sample"], feeds["timestep"], timestep_cond=condition, **given).sample
        other = told_xl(feeds["sample"], feeds["timestep"], **given).sample
        got = checkpoint.unet(feeds["sample"], feeds["timestep"], **given).sample
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()  # of float32
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max()
    assert checkpoint.embedded_guidance == scale and default_guidance(checkpoint, asked) == 1
    assert f"{scale:g} is built in" in checkpoint.notices[-1]


def test_the_guidance_of_xl_is_that_of_diffusers_pipeline(told_xl: UNet2DConditionModel) -> None:
    checkpoint = Checkpoint("x", told_xl, scheduler_config=XL_SCHEDULER_CONFIG)
    assert default_guidance(checkpoint, None) == 5.0 and default_guidance(checkpoint, 0.0) == 0.0


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("offset", [0, 1])
def test_trailing_timesteps_of_turbo_and_lightning(scheduler: Any, offset: int) -> None:
    """From the last training timestep, and whatever offset the configuration has: pipelines of Stable Diffusion XL do
    not correct it, as others do."""
    config = {
        **XL_SCHEDULER_CONFIG,
        "_class_name": scheduler.__name__,
        "timestep_spacing": "trailing",
        "steps_offset": offset,
    }
    tables = build_tables(config, [1, 4], xl=True)
    assert tables.config["steps_offset"] == offset and not tables.notices
    for steps in (1, 4):
        theirs = scheduler.from_config(config)
        theirs.set_timesteps(steps)
        assert tables.records[tables.default][steps].timesteps.tolist() == theirs.timesteps.tolist()
        assert theirs.timesteps[0] == 999
