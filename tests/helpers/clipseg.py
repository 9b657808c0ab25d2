"""A tiny CLIPSeg with random weights, as a folder that transformers loads."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer

SIDE = 32
_LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clipseg(folder: Path, words: Sequence[str]) -> Path:
    """Images are scaled to 32 x 32 pixels; at most 24 tokens, one per word."""
    write_word_tokenizer(folder, words, 24)
    size = len((folder / "vocab.json").read_text(encoding="utf-8").splitlines()) - 2
    text = {**_LAYERS, "vocab_size": size, "max_position_embeddings": 24}
    config = CLIPSegConfig(
        text_config={**text, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1},
        vision_config={**_LAYERS, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    torch.manual_seed(0)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    image = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    return folder
