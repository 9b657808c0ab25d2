"""Models with random weights as folders in diffusers format, for tests of whatever reads these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebca.export.checkpoint.random_model import RandomModel
from ebca.export.checkpoint.tokenizer import CLIP_MAX_LENGTH
from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer

_TASKS = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}


def save_pipeline(model: RandomModel, folder: str | Path, seed: int = 0, *, in_channels: int = 4) -> Path:
    """Write a model as a pipeline folder; returns the folder. For the arguments see `RandomModel.build`."""
    folder = Path(folder)
    checkpoint = model.build(seed, in_channels=in_channels)
    scheduler = str(model.scheduler["_class_name"])
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if model.is_xl else ''}{_TASKS[in_channels]}Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler],
    }
    if model.is_xl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["force_zeros_for_empty_prompt"] = checkpoint.force_zeros_for_empty_prompt
        write_word_tokenizer(folder / "tokenizer_2", model.words, CLIP_MAX_LENGTH, pad_token=model.pad_token_2)
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (network := getattr(checkpoint, part)) is not None:
            network.save_pretrained(folder / part)
    write_word_tokenizer(folder / "tokenizer", model.words, CLIP_MAX_LENGTH)
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", dict(model.scheduler))
    _write_json(folder / "model_index.json", index)
    return folder


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
