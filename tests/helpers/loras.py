"""One LoRA in every key format, and textual inversions, for the tiny model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK, ALPHA = 3, 6.0
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 32),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": (32, 32),
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v": (32, 32),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (64, 32),
    "mid_block.attentions.0.proj_in": (64, 64, 1, 1),
    "down_blocks.0.resnets.0.conv1": (32, 32, 3, 3),
    "up_blocks.0.upsamplers.0.conv": (64, 64, 3, 3),
}
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj": (32, 32),
    "text_model.encoder.layers.1.mlp.fc1": (64, 32),
}
# What CompVis calls the modules of a UNet with one resnet per block.
COMPVIS = {
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "up_blocks.1.attentions.1.": "output_blocks.3.1.",
    "mid_block.attentions.0.": "middle_block.1.",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "up_blocks.0.upsamplers.0.": "output_blocks.1.2.",
}

Pair = tuple[np.ndarray, np.ndarray]


def pairs(seed: int = 0, scale: float = 0.3) -> dict[str, dict[str, Pair]]:
    """Part -> module -> (down A, up B), float32."""
    rng = np.random.default_rng(seed)
    return {
        part: {
            name: (
                scale * rng.standard_normal((RANK, *shape[1:]), np.float32),
                scale * rng.standard_normal((shape[0], RANK, *([1] * (len(shape) - 2))), np.float32),
            )
            for name, shape in modules.items()
        }
        for part, modules in (("unet", UNET), ("text_encoder", TEXT))
    }


def changes(seed: int = 0, scale: float = 0.3) -> dict[str, dict[str, np.ndarray]]:
    """Part -> module -> alpha / rank * B A in float64."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for part, modules in pairs(seed, scale).items():
        for name, (down, up) in modules.items():
            product = up.astype(np.float64).reshape(len(up), RANK) @ down.astype(np.float64).reshape(RANK, -1)
            shape = (len(up), *down.shape[1:])
            found.setdefault(part, {})[name] = ALPHA / RANK * product.reshape(shape)
    return found


def tensors(style: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The LoRA as a file of this style has it: diffusers, diffusers-old, processors, peft, kohya or compvis."""
    found: dict[str, np.ndarray] = {}
    for part, modules in pairs(seed).items():
        for name, (down, up) in modules.items():
            down_key, up_key, alpha_key = _keys(style, part, name)
            found[down_key], found[up_key] = down, up
            if alpha_key is not None:
                found[alpha_key] = np.array(ALPHA, np.float32)
            else:
                # These styles have no alphas: it is the rank.
                found[up_key] = up * np.float32(ALPHA / RANK)
    return found


def _keys(style: str, part: str, name: str) -> tuple[str, str, str | None]:
    if style == "diffusers":
        return f"{part}.{name}.lora_A.weight", f"{part}.{name}.lora_B.weight", None
    if style == "diffusers-old":
        inner = "lora" if part == "unet" else "lora_linear_layer"
        return f"{part}.{name}.{inner}.down.weight", f"{part}.{name}.{inner}.up.weight", None
    if style == "processors":
        stem, _, last = name.removesuffix(".0").rpartition(".")
        if ".attn" not in name:
            return _keys("diffusers-old", part, name)
        module = f"{part}.{stem}.processor.{last}_lora"
        return f"{module}.down.weight", f"{module}.up.weight", None
    if style == "peft":
        module = f"base_model.model.{name}"
        return f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight", None
    if style == "compvis" and part == "unet":
        old, new = next((old, new) for old, new in COMPVIS.items() if name.startswith(old))
        name = new + name.removeprefix(old)
    module = ("lora_unet_" if part == "unet" else "lora_te_") + name.replace(".", "_")
    return f"{module}.lora_down.weight", f"{module}.lora_up.weight", f"{module}.alpha"


STYLES = ("diffusers", "diffusers-old", "processors", "peft", "kohya", "compvis")


def write(
    path: Path, values: Mapping[str, np.ndarray] | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a .safetensors file; of the LoRA in kohya's style without `values`."""
    values = tensors("kohya") if values is None else values
    save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path, dict(metadata or {}) or None)
    return path
