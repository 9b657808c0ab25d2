"""A UNet whose configuration says most fields in an unusual form exports as exactly as any."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from diffusers import UNet2DConditionModel

from ebca.engines.contract.directory import open_directory
from ebca.export import export_unet, parity
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.checkpoint.random_weights import random_parameter
from ebca.export.scheduler_tables import build_tables

# Cross-attention at the largest size only: the segment between its layers goes down twice and up again, and has no
# input of the sizes in between.
CONFIG: dict[str, Any] = {
    "sample_size": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 16, 32],
    "layers_per_block": [1, 1, 2],
    "norm_num_groups": 8,
    "cross_attention_dim": [24, None, None],
    # Three heads of five channels: not all of the 16.
    "attention_head_dim": [3, None, 4],
    "transformer_layers_per_block": [[2], 1, 1],
    "reverse_transformer_layers_per_block": [1, 1, [1, 2]],
    "only_cross_attention": [False, False, False],
    "use_linear_projection": True,
    "upcast_attention": True,
    "resnet_time_scale_shift": "scale_shift",
    "conv_in_kernel": 1,
    "conv_out_kernel": 5,
    "time_embedding_dim": 48,
    "time_embedding_act_fn": "gelu",
    "timestep_post_act": "silu",
    "center_input_sample": True,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "act_fn": "mish",
    "norm_eps": 1e-3,
    "dropout": 0.5,
}


def test_unusual_forms_export_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = build_tables(SCHEDULER_CONFIG, [1])
    monkeypatch.setattr("ebca.export.stages.schedulers.build_tables", lambda *args, **options: tables)
    unet = UNet2DConditionModel.from_config(CONFIG).eval().requires_grad_(False)
    shapes = {name: tuple(value.shape) for name, value in unet.named_parameters()}
    unet.load_state_dict({name: torch.from_numpy(random_parameter(name, shape)) for name, shape in shapes.items()})
    unet.save_pretrained(tmp_path / "unet")
    # The export compares every segment, and all of them, with PyTorch.
    manifest = open_directory(export_unet(tmp_path / "unet", tmp_path / "engine")).manifest
    assert (manifest.unet.sample_size, manifest.unet.context_dim) == (8, 24)
    assert [(layer.heads, layer.head_dim) for layer in manifest.unet.layers] == [(3, 5)] * 5
    # As with any other UNet: both compute in float32 from the same weights.
    assert 0 < max(*manifest.parity["segments"].values(), *manifest.parity["unet"].values()) <= 1e-5 < parity.LIMIT
