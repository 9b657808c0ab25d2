"""Maps of the attention to each token of the prompt."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ebca.engines.contract.manifest import UNetSpec
from ebca.runtime.execution.control import resize_planes
from ebca.runtime.images.outputs import to_bytes


class AttentionMaps:
    """Mean cross-attention probabilities per token of the main prompt, over heads, layers and evaluations.

    Pass an instance to an executor as its probe. Maps of all layers are resized to the latent size first, so that each
    layer has the same weight.

    Args:
        unet: the split UNet of a manifest.
        sizes: of the executor: batch, contexts, tokens, height, width.
        images: n; the last n rows of the executor are their conditional rows.
    """

    def __init__(self, unet: UNetSpec, sizes: dict[str, int], images: int) -> None:
        self._layers = [(layer.heads, *layer.size(sizes)) for layer in unet.layers]
        self._size = (sizes["height"], sizes["width"])
        self._sum = np.zeros((images, sizes["tokens"], *self._size), np.float64)
        self._count = 0

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray) -> None:
        """Add one layer of one evaluation; see `ebca.runtime.execution.inspection.Probe`."""
        # In float64, whose rounding to float32 does not depend on the order of the sums: the C++ library has the same.
        heads, height, width = self._layers[layer]
        for image, total in enumerate(self._sum):
            row = image - len(self._sum)
            queries = q[row].reshape(height * width, heads, -1).astype(np.float64)
            keys = k[row, 0].reshape(k.shape[2], heads, -1).astype(np.float64)
            mean = np.zeros((height * width, k.shape[2]))
            for head in range(heads):
                scores = queries[:, head] @ keys[:, head].T * queries.shape[-1] ** -0.5
                scores = np.exp(scores - scores.max(1, keepdims=True))
                mean += scores / scores.sum(1, keepdims=True)
            planes = (mean / heads).T.reshape(-1, height, width)
            total += planes if (height, width) == self._size else resize_planes(planes, *self._size)
        self._count += 1

    @property
    def maps(self) -> np.ndarray:
        """[n,T,h,w] float32; at each position the values of all tokens sum to 1."""
        return (self._sum / max(self._count, 1)).astype(np.float32)


def draw_attention(image: Image.Image, maps: np.ndarray, tokens: Sequence[str]) -> Image.Image:
    """A sheet of labelled tiles: the image, then one attention map per token. Each map is scaled to its own maximum.

    Args:
        image: the generated image.
        maps: [T,h,w] of this image.
        tokens: labels of the first tokens, beginning with the start token.
    """
    side = max(min(image.width, 256), 128)
    size = (side, round(side * image.height / image.width))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    tiles = [("", resized)]
    grey = ImageOps.grayscale(resized).convert("RGB")
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
