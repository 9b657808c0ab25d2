"""A tiny DINO ViT with random weights, as a folder that transformers loads."""

import json
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

SIDE = 32


def write_dino(folder: Path) -> Path:
    """Two layers; images of 32 x 32 pixels in 16 patches."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTModel(ViTConfig(**layers, image_size=SIDE, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    image = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    return folder
