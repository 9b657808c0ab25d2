"""The energy update of one UNet evaluation: its parameters, and their arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from ebca.engines.contract.manifest import LayerSpec
from ebca.errors import ParameterError
from ebca.plugins.energy_attention import check_weights, tie_matrix
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class EnergyControl(Shown):
    """How the cross-attention layers of one UNet evaluation update the contexts (letters as in the op's README).

    Attributes:
        gamma_attn: step size of the attention term: a number, [T], or an array that broadcasts to [B,S,T].
        gamma_norm: step size of the norm term: a number, or an array that broadcasts to [B,S].
        weights: composition weights w_s: a number, or an array that broadcasts to [B,S]; 1 for the main context, and
            +alpha or -alpha for an editing context.
        mask: [B or 1, 1, h, w] at latent size, 1 = hole; applies to the main context only. None: no mask.
        tie_unconditional: the rows before the conditional ones are unconditional, and the editing contexts of each are
            one vector.
        rows_per_image: with `tie_unconditional`, how many; one of them is conditional.
        norm_factor: factor of |k|^2 in the norm term's softmax: 1 as in the authors' code, 0.5 as in the paper.
    """

    gamma_attn: ArrayLike = 0.0
    gamma_norm: ArrayLike = 0.0
    weights: ArrayLike = 1.0
    mask: np.ndarray | None = None
    tie_unconditional: bool = True
    rows_per_image: int = 2
    norm_factor: float = rules.GENERATE.norm_factor


@dataclass(frozen=True)
class ControlArrays:
    """An `EnergyControl` as float32 inputs of the op: gamma_attn [B,S,T], gamma_norm and weights [B,S], tie [B,S,S],
    norm_factor [], and the masks."""

    gamma_attn: np.ndarray
    gamma_norm: np.ndarray
    weights: np.ndarray
    tie: np.ndarray
    norm_factor: np.ndarray
    masks: "LayerMasks"

    @property
    def variant(self) -> str:
        """The cheapest variant of the op that these values allow."""
        if not (self.gamma_attn.any() or self.gamma_norm.any()):
            return "attention"
        return "update_masked" if self.masks else "update"


LayerMasks = Mapping[tuple[int, int], np.ndarray]
"""One mask [B,S,N] per size (height, width) of a layer's positions."""


def resolve(
    control: EnergyControl,
    layers: tuple[LayerSpec, ...],
    sizes: Mapping[str, int],
    masks: LayerMasks | None = None,
) -> ControlArrays:
    """Check a control against the sizes of an evaluation, and return its arrays.

    Args:
        control: the parameters.
        layers: cross-attention layers of the manifest.
        sizes: batch, contexts, tokens, height, width (latent).
        masks: results of `layer_masks`, used instead of the control's mask.

    Raises:
        ParameterError: a shape that does not fit, a value that is not finite, weights that sum to about zero.
    """
    rows, contexts, tokens = sizes["batch"], sizes["contexts"], sizes["tokens"]
    gamma_attn = _broadcast("gamma_attn", control.gamma_attn, (rows, contexts, tokens), "[batch, contexts, tokens]")
    gamma_norm = _broadcast("gamma_norm", control.gamma_norm, (rows, contexts), "[batch, contexts]")
    weights = _broadcast("weights", control.weights, (rows, contexts), "[batch, contexts]")
    check_weights(weights)
    check_norm_factor(control.norm_factor)
    tied = rows - -(-rows // control.rows_per_image) if control.tie_unconditional else 0
    if masks is None:
        masks = {} if control.mask is None else layer_masks(control.mask, layers, sizes)
    return ControlArrays(
        gamma_attn,
        gamma_norm,
        weights,
        tie_matrix(rows, contexts, tied),
        np.array(control.norm_factor, np.float32),
        masks,
    )


def check_norm_factor(value: object) -> None:
    """Raise ParameterError unless `value` is a finite number."""
    if not isinstance(value, Real) or not np.isfinite(float(value)):
        raise rules.NORM_FACTOR.error(value=value)


def layer_masks(mask: np.ndarray, layers: tuple[LayerSpec, ...], sizes: Mapping[str, int]) -> LayerMasks:
    """Resize a mask [B or 1,1,h,w] from latent size to the layers; contexts other than the main one get ones.

    Raises:
        ParameterError: a shape that does not fit, or a value that is not finite.
    """
    mask = _check_mask(mask, sizes)
    masks: dict[tuple[int, int], np.ndarray] = {}
    for layer in layers:
        size = layer.size(sizes)
        if size not in masks:
            full = np.ones((sizes["batch"], sizes["contexts"], size[0] * size[1]), np.float32)
            full[:, 0] = resize_mask(mask, *size).reshape(mask.shape[0], -1)
            masks[size] = full
    return masks


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """[B,1,h,w] -> [B,height,width], as the authors resize a mask: bilinear, aligned corners, no threshold."""
    return resize_planes(mask[:, 0], height, width).astype(np.float32)


def resize_planes(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same for any planes [B,h,w], in float64."""
    rows, columns = _interpolation(planes.shape[1], height), _interpolation(planes.shape[2], width)
    return np.asarray(np.einsum("yh,bhw,xw->byx", rows, planes, columns))


def _interpolation(source: int, target: int) -> np.ndarray:
    """[target, source] float64: linear interpolation with aligned corners as a matrix."""
    position = np.linspace(0, source - 1, target) if target > 1 else np.zeros(1)
    low = np.clip(position.astype(int), 0, max(source - 2, 0))
    matrix = np.zeros((target, source))
    fraction = position - low
    matrix[np.arange(target), low] = 1 - fraction
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += fraction
    return matrix


def _broadcast(name: str, value: ArrayLike, shape: tuple[int, ...], axes: str) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
        wide = np.ascontiguousarray(np.broadcast_to(array, shape))
    except (TypeError, ValueError):
        given = getattr(np.asarray(value, dtype=object), "shape", "?")
        raise ParameterError(
            f"{name} has shape {given}", f"give a number or an array that fits {axes} = {list(shape)}"
        ) from None
    if not np.isfinite(wide).all():
        raise rules.GAMMA_NOT_FINITE.error(name=name)
    return wide


def _check_mask(mask: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    try:
        array = np.asarray(mask, np.float32)
    except (TypeError, ValueError):
        raise ParameterError("mask is not an array of numbers", "give 1 for the hole and 0 elsewhere") from None
    rows, height, width = sizes["batch"], sizes["height"], sizes["width"]
    if array.ndim != 4 or array.shape[0] not in (1, rows) or array.shape[1:] != (1, height, width):
        raise ParameterError(
            f"mask has shape {list(array.shape)}",
            f"give [{rows} or 1, 1, {height}, {width}]: the latents' size, 1 = hole",
        )
    if not np.isfinite(array).all():
        raise ParameterError("mask has values that are not finite", "give 1 for the hole and 0 elsewhere")
    return array
