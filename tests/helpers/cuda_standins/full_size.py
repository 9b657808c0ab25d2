"""The graphs of an architecture at full size, without its weights:

    python full_size.py NAME FOLDER

writes an engine directory's graphs into FOLDER, and `components.json`, their entries in a manifest. They are made by
the export's own stages from a checkpoint of zeros, which takes no memory until something writes to it. All weights lie
in the same zeros of a file without blocks on the disk. Nothing is compared with PyTorch.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ebca.export.checkpoint.architectures import STABLE_DIFFUSION_XL
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.graph import component
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.options import ExportOptions
from ebca.export.parity import UNetReference
from ebca.export.stages import full_unet, text_encoder, unet, vae
from ebca.export.stages.context import Context
from ebca.export.stages.unet_inputs import UNetInputs
from ebca.export.workspace import Workspace

COMPONENTS = "components.json"


@dataclass(frozen=True)
class Architecture:
    """What differs from Stable Diffusion 1.5, which diffusers and CLIP have as their defaults; None for no network
    beside the UNet."""

    unet: Mapping[str, Any] = field(default_factory=dict)
    text_encoder: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None
    text_encoder_2: Mapping[str, Any] | None = None


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_SD_1 = {"sample_size": 64, "cross_attention_dim": 768}
_SD_2 = {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}

_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_XL = STABLE_DIFFUSION_XL

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd-1.5": Architecture(_SD_1, _CLIP_L, _VAE),
    "sd-1.5-inpainting": Architecture({**_SD_1, "in_channels": 9}),
    # Its VAE is that of 1.5.
    "sd-2": Architecture({**_SD_2, "use_linear_projection": True}, {**_CLIP_H, "hidden_act": "gelu"}),
    # Its VAE computes in float32.
    "sdxl": Architecture(_XL.unet, _XL.text_encoder, {**_VAE, "force_upcast": True}, _XL.text_encoder_2),
}


def checkpoint_of_zeros(name: str) -> Checkpoint:
    made = ARCHITECTURES[name]
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**made.unet)
        vae = None if made.vae is None else AutoencoderKL(**made.vae)
        first = None if made.text_encoder is None else CLIPTextModel(CLIPTextConfig(**made.text_encoder))
        second = (
            None if made.text_encoder_2 is None else CLIPTextModelWithProjection(CLIPTextConfig(**made.text_encoder_2))
        )
    return Checkpoint(
        name, unet=_zeros(denoiser), text_encoder=_zeros(first), text_encoder_2=_zeros(second), vae=_zeros(vae)
    )


def _zeros(network: nn.Module | None) -> Any:
    if network is None:
        return None
    state = {name: torch.zeros(value.shape) for name, value in network.named_parameters()}
    network.load_state_dict(state, strict=False, assign=True)
    for module in network.modules():
        # The only buffers are tables of positions.
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return network.eval().requires_grad_(False)


def write_without_weights(graph: ir.Graph, folder: Path, name: str, weights_of: object) -> None:
    """Write a canonical graph whose weights all lie at the beginning of one file of zeros."""
    path = folder / f"{name}.onnx"
    zeros = path.with_name("zeros")
    size = zeros.stat().st_size if zeros.exists() else 0
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= component._EXTERNAL_FROM_BYTES:
            size = max(size, tensor.nbytes)
            value.const_value = ir.ExternalTensor(
                zeros.name, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=path.parent
            )
    zeros.touch()
    with zeros.open("r+b") as file:
        file.truncate(size)
    ir.save(ir.Model(graph, ir_version=component.IR_VERSION), path)


def write(name: str, folder: Path) -> None:
    """See the module docstring."""
    checkpoint = checkpoint_of_zeros(name)
    options = ExportOptions(precision="fp16", compute="fp16", with_full_unet=True)
    workspace = Workspace(folder / "engine", "graphs")
    context = Context(checkpoint, options, workspace, lambda event: None, 0)
    reference = mock.create_autospec(UNetReference, instance=True, sizes={})
    reference.full_unet_error.return_value = 0.0
    inputs = UNetInputs(TracedUNet.of(checkpoint.unet), reference)
    with (
        mock.patch("ebca.export.graph.component._write_canonical", write_without_weights),
        mock.patch("ebca.export.stages.unet.SegmentParity"),
        mock.patch("ebca.export.stages.component.module_error", return_value=0.0),
    ):
        result = unet.export(context, inputs).joined(full_unet.export(context, inputs))
        result = result.joined(text_encoder.export(context)).joined(vae.export(context))
    entries = {name: asdict(one) for name, one in result.components.items() if one.lowered}
    content = {"folder": str(workspace.folder), "components": entries}
    (folder / COMPONENTS).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
