"""A loaded model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel


@dataclass
class Checkpoint:
    """A loaded model: float32, eval mode, no gradients. The parts that a UNet-only source lacks are None."""

    name: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None = None
    vae: AutoencoderKL | None = None
    # decodes latents for previews
    preview_vae: AutoencoderTiny | None = None
    tokenizer_json: str | None = None
    # model_max_length; bos_token, eos_token, pad_token and the ids of each (bos_token_id, ...)
    tokenizer_info: dict[str, Any] = field(default_factory=dict)
    scheduler_config: dict[str, Any] | None = None
    # kind: hub, folder, single-file or built-in; id: hub id or base name; revision: commit or None
    source: dict[str, Any] = field(default_factory=dict)
    # the guidance scale that is built into the UNet; None: it takes none
    embedded_guidance: float | None = None
    # lines for whoever exports, about what was found and left out
    notices: tuple[str, ...] = ()
    # by the names that they have in the engine
    controlnets: dict[str, ControlNetModel] = field(default_factory=dict)

    def matrices(self) -> dict[str, dict[str, nn.Parameter]]:
        """Part of the model -> name -> weights with two or four axes, which LoRAs change."""
        found = {"unet": _matrices(self.unet)}
        if self.text_encoder is not None:
            # As checkpoints and LoRAs name them; versions of transformers differ.
            found["text_encoder"] = {
                f"text_model.{name.removeprefix('text_model.')}": value
                for name, value in _matrices(self.text_encoder).items()
            }
        return found


def _matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.ndim in (2, 4) and n.endswith(".weight")}
