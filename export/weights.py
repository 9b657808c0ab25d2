"""A checkpoint's weights before they are exported: their size, whether they can be stored, and their identity."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
import transformers
from torch import nn

import ebca
from ebca.engines.contract.manifest import VERSION
from ebca.errors import ExportError
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.options import ExportOptions


def networks(checkpoint: Checkpoint) -> list[nn.Module]:
    """The networks that a checkpoint has: UNet, text encoders, VAE, the small one for previews, ControlNets."""
    encoders, vaes = (checkpoint.text_encoder, checkpoint.text_encoder_2), (checkpoint.vae, checkpoint.preview_vae)
    parts = (checkpoint.unet, *encoders, *vaes, *checkpoint.controlnets.values())
    return [m for m in parts if m is not None]


def stored_bytes(parameters: Iterable[nn.Parameter], options: ExportOptions) -> int:
    """Bytes that parameters take in an engine directory."""
    return sum(p.numel() * options.bytes_per_weight for p in parameters)


def total_bytes(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """Bytes of all weights that an export writes, plans included."""
    # A plan stores the weights once more for each shape.
    copies = 1 + (len(options.plans.shapes) if options.plans else 0)
    full_unets = options.with_full_unet + options.with_full_unet_updates
    total = sum(stored_bytes(network.parameters(), options) for network in networks(checkpoint))
    return copies * (total + full_unets * stored_bytes(checkpoint.unet.parameters(), options))


def prepare_weights(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Check all weights; if they are to be stored as float16, round them in place.

    Raises:
        ExportError: a weight is not finite, or does not fit float16.
    """
    limit = torch.finfo(torch.float16).max
    with torch.no_grad():
        for network in networks(checkpoint):
            for name, parameter in network.named_parameters():
                largest = float(parameter.abs().max()) if parameter.numel() else 0.0
                if not np.isfinite(largest):
                    raise ExportError(
                        f"weight '{name}' of the {type(network).__name__} is not finite",
                        "the checkpoint is damaged: download it again",
                    )
                if not options.stores_half:
                    continue
                if largest > limit:
                    raise ExportError(
                        f"weight '{name}' ({largest:.1e}) does not fit float16", "export with --precision fp32"
                    )
                parameter.copy_(parameter.half())


def export_key(checkpoint: Checkpoint, options: ExportOptions) -> str:
    """Identity of an export: weights, options, versions. An interrupted export is resumed under the same key only."""
    digest = hashlib.sha256()
    for network in networks(checkpoint):
        digest.update(json.dumps(_config(network), sort_keys=True, default=str).encode())
        for name, tensor in sorted(network.state_dict().items()):
            crc = zlib.crc32(tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8))
            digest.update(f"{name} {tuple(tensor.shape)} {crc}\n".encode())
    facts = {
        "tokenizer": checkpoint.tokenizer_json,
        "scheduler": checkpoint.scheduler_config,
        "controlnets": list(checkpoint.controlnets),
        "options": _facts(options),
        "versions": {**versions(), "transformers": transformers.__version__, "onnx_ir": onnx_ir.__version__},
        "manifest": VERSION,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _config(network: nn.Module) -> Mapping[str, Any]:
    """A network's configuration, which decides what its weights compute, without where it came from."""
    config: Any = network.config
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def _facts(options: ExportOptions) -> Mapping[str, Any]:
    """What changes written components. Plans have keys of their own, and tables are always computed again."""
    return {
        "precision": options.precision,
        "compute": options.compute,
        "vae": options.vae_float32,
        "vanilla": options.with_full_unet,
        "whole": options.with_full_unet_updates,
    }


def versions() -> dict[str, str]:
    """Versions of the software that writes an engine directory."""
    return {
        "ebca": ebca.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
