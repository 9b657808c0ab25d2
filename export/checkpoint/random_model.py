"""Complete Stable Diffusion models with random weights. Their images are noise, but every code path is that of a real
model, and the same seed gives the same bytes on every machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ebca.errors import ParameterError
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.random_weights import random_parameter
from ebca.export.checkpoint.tokenizer import BOS, CLIP_MAX_LENGTH, EOS, tokenizer_json, with_second_padding
from ebca.export.checkpoint.word_tokenizer import word_vocabulary, write_word_tokenizer


@dataclass(frozen=True)
class RandomModel:
    """A built-in model: its name, configurations as in diffusers and transformers, and words that are one token.

    With `text_encoder_2` it is one of Stable Diffusion XL, whose second text encoder is padded with `pad_token_2`.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    words: tuple[str, ...]
    text_encoder_2: Mapping[str, Any] | None = None
    pad_token_2: str = "!"
    scheduler: Mapping[str, Any] = field(default_factory=lambda: SCHEDULER_CONFIG)

    @property
    def is_xl(self) -> bool:
        return self.text_encoder_2 is not None

    def build(self, seed: int = 0, *, in_channels: int = 4) -> Checkpoint:
        """Build the model; `in_channels` 9 gives its inpainting form, 8 that of InstructPix2Pix. Only the first
        convolution differs.

        Raises:
            ParameterError: a seed below 0 or above 2**32 - 1.
        """
        if not 0 <= seed < 2**32:
            raise ParameterError(f"seed must be between 0 and {2**32 - 1}, not {seed}")
        with torch.device("meta"):
            unet, vae = self._unet(in_channels), self._vae()
        text, info = _tokenizer(self.words)
        if self.is_xl:
            info = with_second_padding(text, info, self.pad_token_2)
        return Checkpoint(
            name=self.name,
            unet=_fill(unet, "", seed),
            # Not on "meta": its table of positions is a buffer, which is not filled.
            text_encoder=_fill(self._text_encoder(), _TEXT_ENCODER, seed),
            text_encoder_2=_fill(self._text_encoder_2(), _TEXT_ENCODER_2, seed) if self.is_xl else None,
            vae=_fill(vae, _VAE, seed),
            tokenizer_json=text,
            tokenizer_info=dict(info),
            scheduler_config=dict(self.scheduler),
            source={"kind": "built-in", "id": self.name, "revision": None},
            force_zeros_for_empty_prompt=self.is_xl,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key and shape of every parameter, as `random_parameter` takes them."""
        with torch.device("meta"):
            networks = {"": self._unet(4), _VAE: self._vae(), _TEXT_ENCODER: self._text_encoder()}
            if self.is_xl:
                networks[_TEXT_ENCODER_2] = self._text_encoder_2()
        return {key: shape for prefix, network in networks.items() for _, key, shape in _parameters(network, prefix)}

    def _unet(self, in_channels: int) -> Any:
        return UNet2DConditionModel.from_config({**self.unet, "in_channels": in_channels})

    def _vae(self) -> Any:
        return AutoencoderKL.from_config(dict(self.vae))

    def _text_encoder(self) -> Any:
        return CLIPTextModel(self._text_config(self.text_encoder))

    def _text_encoder_2(self) -> Any:
        assert self.text_encoder_2 is not None
        return CLIPTextModelWithProjection(self._text_config(self.text_encoder_2))

    def _text_config(self, config: Mapping[str, Any]) -> CLIPTextConfig:
        vocabulary, _ = word_vocabulary(self.words)
        ids = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS], "pad_token_id": vocabulary[EOS]}
        return CLIPTextConfig(**{**config, **ids, "vocab_size": len(vocabulary)})


_TEXT_ENCODER, _TEXT_ENCODER_2, _VAE = "text_encoder.", "text_encoder_2.", "vae."


def _parameters(network: nn.Module, prefix: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, key and shape. Some versions of transformers have the level "text_model", others do not."""
    for name, value in network.named_parameters():
        yield name, prefix + name.removeprefix("text_model."), tuple(value.shape)


def _fill(network: nn.Module, prefix: str, seed: int) -> Any:
    parameters = list(_parameters(network, prefix))
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda one: torch.from_numpy(random_parameter(one[1], one[2], seed)), parameters)
        state = {name: value for (name, _, _), value in zip(parameters, made, strict=True)}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


@cache
def _tokenizer(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        write_word_tokenizer(folder, words, CLIP_MAX_LENGTH)
        return tokenizer_json(folder)
