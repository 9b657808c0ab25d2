"""A model trained with examples/shapes, in PyTorch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebca.bench.alignment.scenes import Scene
from ebca.errors import ModelError

DEFAULT = Path(__file__).resolve().parents[3] / "examples" / "shapes" / "shapes"
"""The trained model in a checkout of the project."""


@dataclass(frozen=True)
class Captions:
    """Encoded captions of n scenes.

    embeddings: [n,T,D]. groups: [n,G,T], 1 for the words of each thing, G the largest number of things.
    nouns: the same with the shape's word alone. subjects: the same with the token after the words too, in which a
    causal text encoder gathers what they mean. counts: things of each scene [n]. ends: position of the end token [n].
    """

    embeddings: Tensor
    groups: Tensor
    nouns: Tensor
    subjects: Tensor
    counts: Tensor
    ends: Tensor


class Model:
    """The networks on a device, in float32.

    Args:
        folder: a pipeline folder in diffusers format.
        device: "cpu", "cuda", ...

    Raises:
        ModelError: the folder holds no such model.
    """

    def __init__(self, folder: Path = DEFAULT, device: str = "cpu") -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        if not (folder / "model_index.json").is_file():
            raise ModelError(f"'{folder}' is not a pipeline folder", "name one that examples/shapes/train.py has made")
        if (folder / "text_encoder_2").exists():
            raise ModelError(
                f"'{folder}' has two text encoders", "name a model of examples/shapes/train.py: it has one"
            )
        self.folder, self.device = folder, torch.device(device)
        kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
        self.unet, self.vae, self.text_encoder = (self._network(name, kind) for name, kind in kinds.items())
        self.layers = _cross_attentions(self.unet)
        self.scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self._words = _Words(folder / "tokenizer")
        self._length = self.text_encoder.config.max_position_embeddings

    def _network(self, name: str, kind: Any) -> Any:
        network = kind.from_pretrained(self.folder / name, local_files_only=True)
        return network.float().to(self.device).eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of the latents of an image."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @torch.no_grad()
    def encode(self, scenes: Sequence[Scene]) -> Captions:
        """Encode the captions of scenes."""
        rows = [self._words.ids(scene.caption(), self._length) for scene in scenes]
        most = max(len(scene.things) for scene in scenes)
        groups = np.zeros((3, len(scenes), most, self._length), np.float32)
        for row, scene in enumerate(scenes):
            words = _split(scene.caption())
            for thing, wanted in enumerate(scene.things):
                # Colours and shapes differ between the things of a scene. Token 0 begins the caption.
                color, shape = (1 + words.index(word) for word in (wanted.color, wanted.shape))
                groups[0, row, thing, [color, shape]] = 1
                groups[1, row, thing, shape] = 1
                groups[2, row, thing, [color, shape, shape + 1]] = 1
        both, nouns, subjects = torch.from_numpy(groups).to(self.device)
        counts = torch.tensor([len(scene.things) for scene in scenes], device=self.device)
        ends = torch.tensor([1 + len(_split(scene.caption())) for scene in scenes], device=self.device)
        return Captions(self._embeddings(rows), both, nouns, subjects, counts, ends)

    @torch.no_grad()
    def unconditional(self) -> Tensor:
        """The embeddings of an empty caption, [1,T,D]."""
        return self._embeddings([self._words.ids("", self._length)])

    def _embeddings(self, rows: Sequence[Sequence[int]]) -> Tensor:
        found: Tensor = self.text_encoder(torch.tensor(rows, device=self.device)).last_hidden_state
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Images [n,H,W,3] uint8 of latents [n,4,h,w]."""
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        whole = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        images: np.ndarray = whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return images


class _Words:
    """The word tokenizer of these models: every word of a caption is one token.

    It reads either form in which transformers has saved it.
    """

    def __init__(self, folder: Path) -> None:
        whole, parts = folder / "tokenizer.json", folder / "vocab.json"
        if whole.is_file():
            self._ids = json.loads(whole.read_text(encoding="utf-8"))["model"]["vocab"]
        elif parts.is_file():
            self._ids = json.loads(parts.read_text(encoding="utf-8"))
        else:
            raise ModelError(f"'{folder}' has no vocabulary", "it needs tokenizer.json or vocab.json")

    def ids(self, caption: str, length: int) -> list[int]:
        try:
            begin, end = (self._ids[name] for name in ("<|startoftext|>", "<|endoftext|>"))
            found = [begin, *(self._ids[f"{word}</w>"] for word in _split(caption)), end]
        except KeyError as error:
            raise ModelError(
                f"the model's vocabulary has no token {error}", "use a model that examples/shapes/train.py has made"
            ) from None
        return found + [end] * (length - len(found))


def _split(caption: str) -> list[str]:
    return re.findall(r"[a-z]+|,", caption)


def _cross_attentions(unet: nn.Module) -> list[nn.Module]:
    """The cross-attention modules in the order in which they run."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [module for block in blocks for name, module in block.named_modules() if name.endswith("attn2")]
