"""Tiny judges with random weights, as folders that transformers loads."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
)

from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer

SIDE = 32
_LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: several, on networks as small as these, mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_clip(folder: Path, words: Sequence[str], *, projection: int = 24) -> Path:
    """A CLIP with images of 32 x 32 pixels, at most 24 tokens, and one token per word."""
    write_word_tokenizer(folder, words, 24)
    size = len((folder / "vocab.json").read_text(encoding="utf-8").splitlines()) - 2
    text = {**_LAYERS, "vocab_size": size, "max_position_embeddings": 24}
    config = CLIPConfig(
        text_config={**text, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1},
        vision_config={**_LAYERS, "image_size": SIDE, "patch_size": 8},
        projection_dim=projection,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    image = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}}
    _write(folder / "preprocessor_config.json", {**image, "crop_size": {"height": SIDE, "width": SIDE}})
    return folder


def write_captioner(folder: Path, words: Sequence[str]) -> Path:
    """A BLIP captioner with images of 32 x 32 pixels; it says some of the words."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    # As in the published captioner, whose token for the start of a caption is not among BERT's.
    BertTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["[DEC]"]).save_pretrained(folder)
    text = {
        **_LAYERS, "initializer_range": 0.5, "encoder_hidden_size": 16,
        "vocab_size": len(vocabulary), "max_position_embeddings": 64,
        "bos_token_id": vocabulary["[DEC]"], "sep_token_id": vocabulary["[SEP]"], "eos_token_id": vocabulary["[SEP]"],
        "pad_token_id": vocabulary["[PAD]"],
    }  # fmt: skip
    # Large random weights, so that images and positions matter.
    vision = {**_LAYERS, "initializer_range": 1.0, "image_size": SIDE, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        # No special token but the end.
        model.text_decoder.cls.predictions.bias[: len(special)] = -100.0
        model.text_decoder.cls.predictions.bias[vocabulary["[SEP]"]] = 0.0
    model.save_pretrained(folder)
    image = {"image_processor_type": "BlipImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    _write(folder / "preprocessor_config.json", {**image, "processor_class": "BlipProcessor"})
    return folder


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
