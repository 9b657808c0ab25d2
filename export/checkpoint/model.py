"""A loaded model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ebca.export.checkpoint.supported import is_xl


@dataclass
class Checkpoint:
    """A loaded model: float32, eval mode, no gradients. The parts that a UNet-only source lacks are None."""

    name: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None = None
    # of Stable Diffusion XL: its hidden states follow those of the first, and its projection is the pooled embedding
    text_encoder_2: CLIPTextModelWithProjection | None = None
    vae: AutoencoderKL | None = None
    # decodes latents for previews
    preview_vae: AutoencoderTiny | None = None
    tokenizer_json: str | None = None
    # model_max_length; bos_token, eos_token, pad_token and the ids of each (bos_token_id, ...); with a second text
    # encoder also pad_token_2 and pad_token_id_2
    tokenizer_info: dict[str, Any] = field(default_factory=dict)
    scheduler_config: dict[str, Any] | None = None
    # kind: hub, folder, single-file or built-in; id: hub id or base name; revision: commit or None
    source: dict[str, Any] = field(default_factory=dict)
    # the guidance scale that is built into the UNet; None: it takes none
    embedded_guidance: float | None = None
    # an empty negative prompt stands for embeddings that are zero
    force_zeros_for_empty_prompt: bool = False
    # lines for whoever exports, about what was found and left out
    notices: tuple[str, ...] = ()
    # by the names that they have in the engine
    controlnets: dict[str, ControlNetModel] = field(default_factory=dict)

    @property
    def is_xl(self) -> bool:
        """Whether this is Stable Diffusion XL."""
        return is_xl(self.unet.config)

    def is_unread(self, part: str, name: str) -> bool:
        """Whether a weight, named as in `matrices`, is one that no image depends on: of the first of two text encoders,
        the UNet reads the layer before the last."""
        if part != "text_encoder" or self.text_encoder is None or self.text_encoder_2 is None:
            return False
        return name.startswith(f"text_model.encoder.layers.{self.text_encoder.config.num_hidden_layers - 1}.")

    def matrices(self) -> dict[str, dict[str, nn.Parameter]]:
        """Part of the model -> name -> weights with two or four axes, which LoRAs change."""
        found = {"unet": _matrices(self.unet)}
        for part, encoder in (("text_encoder", self.text_encoder), ("text_encoder_2", self.text_encoder_2)):
            if encoder is not None:
                found[part] = {_text_name(name): value for name, value in _matrices(encoder).items()}
        return found


def _text_name(name: str) -> str:
    """As checkpoints and LoRAs name a weight of a text encoder; versions of transformers differ."""
    return name if name.startswith("text_projection.") else f"text_model.{name.removeprefix('text_model.')}"


def _matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.ndim in (2, 4) and n.endswith(".weight")}
