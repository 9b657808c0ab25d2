"""Energies per evaluation and layer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebca.errors import ParameterError
from ebca.result_files import replacing
from ebca.runtime.images.files import expanded
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class Energies(Shown):
    """Energies of every evaluation, as the authors' monitor defines them (see the op's README).

    Attributes:
        timesteps: one per evaluation (m).
        layers: names of the L cross-attention layers in the checkpoint.
        values: [m,L,2,B,S] float32: attention and norm term per row and context. With guidance, the last rows, one per
            image, are conditional.
        images: how many; None: half of the rows are conditional.
    """

    timesteps: tuple[float, ...]
    layers: tuple[str, ...]
    values: np.ndarray
    images: int | None = None

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
        """[m,L,B,S]: the sum of both."""
        return self.attention + self.norm

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per evaluation and layer, with energies as nested lists [B][S]."""
        for i, timestep in enumerate(self.timesteps):
            for j, layer in enumerate(self.layers):
                terms = {name: getattr(self, name)[i, j].tolist() for name in ("attention", "norm", "total")}
                yield {"evaluation": i, "timestep": timestep, "layer": layer, **terms}

    def write_lines(self, path: Path) -> None:
        """Write `records` as JSON lines. Folders that are missing are created.

        Raises:
            ParameterError: the file cannot be written.
        """
        with replacing(expanded(path)) as file:
            for record in self.records():
                file.write(f"{json.dumps(record)}\n".encode())

    def plot(self, path: Path) -> None:
        """Plot the three energies over the evaluations, one line per layer: means of the main context over the
        conditional rows. Folders that are missing are created.

        Raises:
            ParameterError: matplotlib is not installed, or the file cannot be written.
        """
        require_plotting()
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        rows = self.values.shape[3]
        conditional = slice(rows - (self.images or rows - rows // 2), None)
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        colors = colormaps["viridis"](np.linspace(0, 0.95, len(self.layers)))
        for axes, name in zip(figure.subplots(1, 3), ("attention", "norm", "total"), strict=True):
            means = getattr(self, name)[:, :, conditional, 0].mean(-1)
            for j, layer in enumerate(self.layers):
                axes.plot(means[:, j], color=colors[j], label=_short(layer), linewidth=1.2)
            axes.set(title=name, xlabel="evaluation", ylabel="energy" if name == "attention" else None)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=6)
        path = expanded(path)
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:] or "png", dpi=110)


def require_plotting() -> None:
    """Raise ParameterError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ParameterError("an energy plot needs matplotlib", "run `pip install 'ebca[plot]'`") from None


def _short(layer: str) -> str:
    """ "down_blocks.1.attentions.0.transformer_blocks.0.attn2" -> "down 1.0.0"."""
    numbers = ".".join(part for part in layer.split(".") if part.isdigit())
    return f"{layer.split('_')[0]} {numbers}"
