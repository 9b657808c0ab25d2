"""What a generation tells about itself on request: energies by step and layer, attention maps by token."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ebca.engines.manifest import UNetSpec
from ebca.errors import ParameterError
from ebca.runtime.control import resize_mask
from ebca.runtime.images import to_bytes


@dataclass(frozen=True)
class Energies:
    """Energies of every evaluation, as the authors' monitor defines them (README of the op).

    Attributes:
        timesteps: [m] of the evaluations.
        layers: names of the L cross-attention layers in the checkpoint.
        values: [m,L,2,B,S] float32: attention and norm term per row and context. With guidance the first half of the
            rows is unconditional.
    """

    timesteps: tuple[float, ...]
    layers: tuple[str, ...]
    values: np.ndarray

    @property
    def attention(self) -> np.ndarray:
        """[m,L,B,S]: mean over heads of the sum over tokens of -logsumexp over positions."""
        return self.values[:, :, 0]

    @property
    def norm(self) -> np.ndarray:
        """[m,L,B,S]: logsumexp over tokens of half the squared norm of the keys."""
        return self.values[:, :, 1]

    @property
    def total(self) -> np.ndarray:
        """[m,L,B,S]: their sum."""
        return self.attention + self.norm

    def records(self) -> Iterator[dict[str, Any]]:
        """One object per evaluation and layer; its numbers are lists [B][S]."""
        for i, timestep in enumerate(self.timesteps):
            for j, layer in enumerate(self.layers):
                terms = {name: getattr(self, name)[i, j].tolist() for name in ("attention", "norm", "total")}
                yield {"evaluation": i, "timestep": timestep, "layer": layer, **terms}

    def write_lines(self, path: Path) -> None:
        """Write `records` as JSON lines.

        Raises:
            ParameterError: the file cannot be written.
        """
        try:
            path.write_text("".join(json.dumps(record) + "\n" for record in self.records()), encoding="utf-8")
        except OSError as error:
            raise ParameterError(f"cannot write '{path}': {error.strerror or error}") from None

    def plot(self, path: Path) -> None:
        """Draw the course of the three energies, one line per layer: means over the conditional rows, main context.

        Raises:
            ParameterError: matplotlib is not installed, or the file cannot be written.
        """
        require_plotting()
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        rows = self.values.shape[3]
        conditional = slice(rows // 2 if rows > 1 else 0, None)
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        colors = colormaps["viridis"](np.linspace(0, 0.95, len(self.layers)))
        for axes, name in zip(figure.subplots(1, 3), ("attention", "norm", "total"), strict=True):
            means = getattr(self, name)[:, :, conditional, 0].mean(-1)
            for j, layer in enumerate(self.layers):
                axes.plot(means[:, j], color=colors[j], label=_short(layer), linewidth=1.2)
            axes.set(title=name, xlabel="evaluation", ylabel="energy" if name == "attention" else None)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=6)
        try:
            figure.savefig(path, dpi=110)
        except (OSError, ValueError) as error:
            raise ParameterError(f"cannot write '{path}': {error}") from None


class AttentionMaps:
    """Mean cross-attention probabilities per token of the main prompt, over heads, layers and evaluations.

    An executor's probe. Layers of other sizes are brought to the size of the latents first, so each counts alike.

    Args:
        sizes: of the executor: batch, contexts, tokens, height, width.
        pictures: n; their conditional rows are the last n.
    """

    def __init__(self, unet: UNetSpec, sizes: dict[str, int], pictures: int) -> None:
        self._layers = [(layer.heads, *layer.size(sizes)) for layer in unet.layers]
        self._size = (sizes["height"], sizes["width"])
        self._sum = np.zeros((pictures, sizes["tokens"], *self._size), np.float64)
        self._count = 0

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray) -> None:
        heads, height, width = self._layers[layer]
        for picture, total in enumerate(self._sum):
            row = picture - len(self._sum)
            queries = q[row].reshape(height * width, heads, -1)
            keys = k[row, 0].reshape(k.shape[2], heads, -1)
            mean = np.zeros((height * width, k.shape[2]), np.float32)
            for head in range(heads):
                scores = queries[:, head] @ keys[:, head].T * np.float32(queries.shape[-1] ** -0.5)
                scores = np.exp(scores - scores.max(1, keepdims=True))
                mean += scores / scores.sum(1, keepdims=True)
            planes = (mean / heads).T.reshape(-1, 1, height, width)
            total += planes[:, 0] if (height, width) == self._size else resize_mask(planes, *self._size)
        self._count += 1

    @property
    def maps(self) -> np.ndarray:
        """[n,T,h,w] float32; at each position the tokens sum to 1."""
        return (self._sum / max(self._count, 1)).astype(np.float32)


def draw_attention(image: Image.Image, maps: np.ndarray, tokens: Sequence[str]) -> Image.Image:
    """The picture and, for each token, where it is attended to: one strip of tiles with the tokens' names.

    Args:
        maps: [T,h,w] of this picture.
        tokens: names of the first tokens from the start token on; each tile is scaled to its own brightest point.
    """
    side = max(min(image.width, 256), 128)
    size = (side, round(side * image.height / image.width))
    picture = image.resize(size, Image.Resampling.LANCZOS)
    tiles = [("", picture)]
    grey = ImageOps.grayscale(picture).convert("RGB")
    for name, plane in zip(tokens, maps, strict=False):
        scaled = (plane - plane.min()) / max(float(np.ptp(plane)), 1e-12)
        heat = Image.fromarray(to_bytes(scaled)).resize(size, Image.Resampling.BICUBIC)
        colored = ImageOps.colorize(heat, "black", "white", mid="orangered")
        tiles.append((name, Image.blend(grey, colored, 0.65)))
    columns = min(len(tiles), 8)
    rows = -(-len(tiles) // columns)
    label, gap = 14, 4
    sheet = Image.new("RGB", (columns * (size[0] + gap) + gap, rows * (size[1] + label + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, tile) in enumerate(tiles):
        x = gap + index % columns * (size[0] + gap)
        y = gap + index // columns * (size[1] + label + gap)
        pen.text((x, y), name.removesuffix("</w>"), fill="black")
        sheet.paste(tile, (x, y + label))
    return sheet


def require_plotting() -> None:
    """Raises ParameterError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ParameterError("an energy plot needs matplotlib: pip install 'ebca[plot]'") from None


def _short(layer: str) -> str:
    """ "down_blocks.1.attentions.0.transformer_blocks.0.attn2" -> "down 1.0.0"."""
    numbers = ".".join(part for part in layer.split(".") if part.isdigit())
    return f"{layer.split('_')[0]} {numbers}"
