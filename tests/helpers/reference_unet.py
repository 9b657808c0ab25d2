"""Energy-based cross attention in plain PyTorch, written directly from the formulas of the authors' algorithm.

For comparison only: float64, one image at a time, no code shared with the runtime. Per image, `main` is the context C
of its two rows (unconditional, conditional), and `edits` is E = [unconditional copy, edit_1 .. edit_n].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor


@dataclass
class Editing:
    """One editing prompt: direction 1 adds it, 0 takes it away."""

    alpha: float
    direction: int
    gamma_attn: float
    gamma_norm: float


@dataclass
class Image:
    """Contexts of one image: main [2,T,D], edits [1+n,T,D] or None."""

    main: Tensor
    edits: Tensor | None


class _Processor:
    def __init__(self, reference: "ReferenceUNet") -> None:
        self.reference = reference

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.reference.layer(attn, hidden_states)


class ReferenceUNet:
    """A UNet whose cross-attention layers follow the formulas. Use once per evaluation.

    Args:
        unet: in float64; its cross-attention processors are replaced.
        gamma_attn, gamma_norm: of the main contexts.
        upweights: (token, factor) pairs.
        editings: one per editing prompt.
        mask: [1,1,h,w] at latent size, 1 = hole.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        gamma_attn: float = 0.0,
        gamma_norm: float = 0.0,
        upweights: list[tuple[int, float]] | None = None,
        editings: list[Editing] | None = None,
        mask: np.ndarray | None = None,
    ) -> None:
        self.unet = unet
        self.gamma_attn, self.gamma_norm = gamma_attn, gamma_norm
        self.upweights = upweights or []
        self.editings = editings or []
        self.mask = None if mask is None else torch.from_numpy(mask).double()
        self.images: list[Image] = []
        self.latent_size = (0, 0)
        processor = _Processor(self)
        unet.set_attn_processor({n: processor if ".attn2." in n else p for n, p in unet.attn_processors.items()})

    @torch.no_grad()
    def __call__(
        self,
        sample: np.ndarray,
        timestep: float | Tensor,
        images: list[Image],
        residuals: list[Tensor] | None = None,
        added: dict[str, Tensor] | None = None,
    ) -> np.ndarray:
        """Noise prediction for sample [2N,C,h,w]. Updates the contexts of `images` in place.

        `residuals` are those of ControlNets: of the skips in order, then of the middle block. `added` are text_embeds
        and time_ids of Stable Diffusion XL.
        """
        self.images = images
        self.latent_size = (sample.shape[2], sample.shape[3])
        unused = torch.zeros(len(sample), 1, images[0].main.shape[2], dtype=torch.float64)
        more: dict[str, Any] = {"added_cond_kwargs": added}
        if residuals:
            *down, middle = residuals
            more |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(torch.from_numpy(sample).double(), timestep, unused, return_dict=False, **more)[0].numpy()

    def layer(self, attn: Any, hidden: Tensor) -> Tensor:
        n = len(self.images)
        out = torch.empty_like(hidden)
        for index, image in enumerate(self.images):
            rows = [index, n + index]
            out[rows] = self.image_layer(attn, hidden[rows], image)
        return out

    def image_layer(self, attn: Any, h: Tensor, image: Image) -> Tensor:
        """h [2,S,c]: this layer's pixels of one image."""
        q = attn.to_q(h)
        out = self.attention(attn, q, image.main)
        a, r = self.terms(attn, q, image.main, self.gamma_attn, self.gamma_norm, self.layer_mask(h.shape[1]))
        for token, factor in self.upweights:
            a[1, token] *= factor
        new_main = image.main + (a - r) @ attn.to_k.weight
        if image.edits is not None:
            z, updates = 1.0, []
            for i, edit in enumerate(self.editings, start=1):
                pair = torch.stack([image.edits[0], image.edits[i]])
                sign = 1.0 if edit.direction == 1 else -1.0
                out = out + sign * edit.alpha * self.attention(attn, q, pair)
                z += sign * edit.alpha
                a, r = self.terms(attn, q, pair, edit.gamma_attn, edit.gamma_norm, None)
                updates.append((a - r) @ attn.to_k.weight)
            out = out / z
            new_edits = image.edits.clone()
            for i, update in enumerate(updates, start=1):
                new_edits[i] += update[1]
                new_edits[0] += update[0] / len(updates)
            image.edits = new_edits
        image.main = new_main
        return out

    @staticmethod
    def attention(attn: Any, q: Tensor, context: Tensor) -> Tensor:
        """Standard cross attention with its output projection."""
        k, v = attn.to_k(context), attn.to_v(context)
        d = k.shape[-1] // attn.heads
        heads = []
        for j in range(attn.heads):
            c = slice(j * d, (j + 1) * d)
            probabilities = torch.softmax(d**-0.5 * q[..., c] @ k[..., c].mT, dim=-1)  # over T
            heads.append(probabilities @ v[..., c])
        return attn.to_out[0](torch.cat(heads, dim=-1))

    @staticmethod
    def terms(
        attn: Any, q: Tensor, context: Tensor, gamma_attn: float, gamma_norm: float, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A and R [2,T,c]."""
        k = attn.to_k(context)
        d = k.shape[-1] // attn.heads
        heads = []
        for j in range(attn.heads):
            c = slice(j * d, (j + 1) * d)
            probabilities = torch.softmax(d**-0.5 * k[..., c] @ q[..., c].mT, dim=-1)  # over the pixels
            heads.append(probabilities @ (q[..., c] if mask is None else mask[None, :, None] * q[..., c]))
        responsibility = torch.softmax((k * k).sum(-1), dim=-1)
        return gamma_attn * torch.cat(heads, dim=-1), gamma_norm * responsibility[..., None] * k

    def layer_mask(self, positions: int) -> Tensor | None:
        if self.mask is None:
            return None
        height, width = self.latent_size
        while height * width != positions:
            height, width = (height + 1) // 2, (width + 1) // 2
        return F.interpolate(self.mask, (height, width), mode="bilinear", align_corners=True).flatten()
