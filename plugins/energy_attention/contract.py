"""The operator's contract as data: variants, tensors, and the two rules for callers (weights, tie).

Letters as in README.md: B batch rows, S contexts (0 is the main prompt), T tokens, N image positions,
H heads of size d.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebca.errors import ParameterError

VARIANTS: Final = ("attention", "update", "update_masked", "energies")
"""Each variant computes more than the previous one, and no variant spends time on results that it does not return.

attention      plain composition, for steps whose gammas are all zero
update         also the energy step g
update_masked  also an inpainting mask inside g
energies       also the two energies per row and context
"""

GUIDED: Final = "_guided"
"""What the names of guided variants end in."""

GUIDED_VARIANTS: Final = tuple(variant + GUIDED for variant in VARIANTS)
"""The same with a bias per token group on the scores behind `out`, and the groups' attention maps."""

MAX_BIAS: Final = 1e4
"""Largest |bias|. exp(-1e4) is 0 in float32, and beside 1e4 a float32 score still has three decimals."""


MIN_WEIGHT_SUM: Final = 1e-3
"""Smallest allowed |sum_s w_s| / sum_s |w_s|. Rounding errors in `out` grow by the inverse of this ratio."""


class TensorSpec(NamedTuple):
    """One tensor: its numpy dtype name, and its shape with symbolic dimensions as strings."""

    dtype: str
    shape: tuple[str | int, ...]


class Signature(NamedTuple):
    """Inputs and outputs of one variant, by name, in the order of the ONNX model."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


_HIDDEN: Final = "heads*head_dim"

_SHAPES: Final[dict[str, tuple[str, ...]]] = {
    "q": ("batch", "positions", _HIDDEN),
    "k": ("batch", "contexts", "tokens", _HIDDEN),
    "v": ("batch", "contexts", "tokens", _HIDDEN),
    "weights": ("batch", "contexts"),
    "gamma_attn": ("batch", "contexts", "tokens"),
    "gamma_norm": ("batch", "contexts"),
    "norm_factor": (),
    "tie": ("batch", "contexts", "contexts"),
    "mask": ("batch", "contexts", "positions"),
    "bias": ("batch", "contexts", "groups", "positions"),
    "token_groups": ("batch", "contexts", "tokens"),
    "out": ("batch", "positions", _HIDDEN),
    "g": ("batch", "contexts", "tokens", _HIDDEN),
    "energy_attn": ("batch", "contexts"),
    "energy_norm": ("batch", "contexts"),
    "maps": ("batch", "groups", "positions"),
}

TENSOR_DOCS: Final[dict[str, str]] = {
    "q": "Queries, head j in channels [j*d, (j+1)*d), not scaled.",
    "k": "Keys of every context, same channel order, not scaled.",
    "v": "Values of every context, same channel order.",
    "weights": "Composition weights: 1 for the main context, +alpha or -alpha for an editorial one.",
    "gamma_attn": "Step size of the attention term, per token (token up-weights are part of it).",
    "gamma_norm": "Step size of the norm term.",
    "norm_factor": "Factor of ||k||^2 in the norm term's softmax: 1 in the authors' code, 0.5 in the paper.",
    "tie": "Mixes the updates of a row's contexts: the identity, or tie_matrix() for the unconditional rows.",
    "mask": "Inpainting mask at this layer's resolution, 1 = hole; multiplies q in the gradient's sum only.",
    "bias": "Added to the scores of every token of a group, before the softmax over tokens that makes `out`.",
    "token_groups": "Group of each token, -1 for none.",
    "out": "Composed attention output, before to_out.",
    "g": "Gradient step in key space; the next segment adds g Wk to the context.",
    "energy_attn": "Mean over heads of sum over tokens of -logsumexp over positions of the scores.",
    "energy_norm": "Logsumexp over tokens of 0.5 ||k||^2, whatever norm_factor is.",
    "maps": "Main context: mean over heads of the softmax over tokens, without bias, summed over a group's tokens.",
}

_ATTENTION_INPUTS: Final = ("q", "k", "v", "weights")
_UPDATE_INPUTS: Final = (*_ATTENTION_INPUTS, "gamma_attn", "gamma_norm", "norm_factor", "tie")
_PLAIN_INPUTS: Final = {
    "attention": _ATTENTION_INPUTS,
    "update": _UPDATE_INPUTS,
    "update_masked": (*_UPDATE_INPUTS, "mask"),
    "energies": (*_UPDATE_INPUTS, "mask"),
}
_PLAIN_OUTPUTS: Final = {
    "attention": ("out",),
    "update": ("out", "g"),
    "update_masked": ("out", "g"),
    "energies": ("out", "g", "energy_attn", "energy_norm"),
}
_INPUTS: Final = _PLAIN_INPUTS | {f"{v}_guided": (*names, "bias", "token_groups") for v, names in _PLAIN_INPUTS.items()}
_OUTPUTS: Final = _PLAIN_OUTPUTS | {f"{v}_guided": (*names, "maps") for v, names in _PLAIN_OUTPUTS.items()}


def is_guided(variant: str) -> bool:
    """Whether a variant is one of GUIDED_VARIANTS."""
    return variant.endswith(GUIDED)


def plain(variant: str) -> str:
    """The one of VARIANTS that a guided variant extends; others are returned as they are."""
    return variant.removesuffix(GUIDED)


def signature(variant: str, heads: int, head_dim: int) -> Signature:
    """Inputs and outputs of a variant; everything but `token_groups` (int32) is float32.

    Symbolic dimensions are "batch", "contexts", "tokens", "positions" and "groups"; heads*head_dim is a number.
    Raises ParameterError for an unknown variant, or heads or head_dim below 1.
    """
    if variant not in _INPUTS:
        raise ParameterError(f"unknown variant {variant!r} of energy attention", f"use one of {', '.join(_INPUTS)}")
    if heads < 1 or head_dim < 1:
        raise ParameterError(f"heads={heads} and head_dim={head_dim} must both be at least 1")

    def spec(name: str) -> TensorSpec:
        dtype = "int32" if name == "token_groups" else "float32"
        return TensorSpec(dtype, tuple(heads * head_dim if dim == _HIDDEN else dim for dim in _SHAPES[name]))

    return Signature({n: spec(n) for n in _INPUTS[variant]}, {n: spec(n) for n in _OUTPUTS[variant]})


def check_weights(weights: ArrayLike) -> None:
    """Refuse composition weights [B, S] whose sum is too small to divide by.

    Raises ParameterError, naming the row, if a weight is not finite or |sum_s w| <= MIN_WEIGHT_SUM * sum_s |w|.
    """
    array: NDArray[Any] = np.asarray(weights, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ParameterError(f"weights have shape {array.shape}", "pass [batch, contexts] with at least one context")
    for index, row in enumerate(array):
        shown = [float(f"{value:.6g}") for value in row]
        if not np.isfinite(row).all():
            raise ParameterError(f"weights of row {index} are not finite: {shown}", "pass finite weights")
        total = row.sum()
        if abs(total) <= MIN_WEIGHT_SUM * np.abs(row).sum():
            raise ParameterError(
                f"weights of row {index}, {shown}, sum to {total:.3g}, and the composed output is divided by that sum",
                f"change an alpha so that |sum| exceeds {MIN_WEIGHT_SUM:g} of sum of |weights|",
            )


def check_guidance(bias: ArrayLike, token_groups: ArrayLike) -> None:
    """Refuse a bias [B, S, G, N] and groups of tokens [B, S, T] that do not belong together.

    Raises ParameterError for other shapes, no group, a bias that is not finite or exceeds MAX_BIAS, or a group outside
    -1..G-1, naming its place. The ONNX graphs and the GPU kernels check none of this.
    """
    values: NDArray[Any] = np.asarray(bias)
    groups: NDArray[Any] = np.asarray(token_groups)
    if values.ndim != 4 or 0 in values.shape:
        raise ParameterError(
            f"bias has shape {values.shape}", "pass [batch, contexts, groups, positions] with at least one group"
        )
    if groups.ndim != 3 or groups.shape[:2] != values.shape[:2] or 0 in groups.shape:
        raise ParameterError(
            f"token_groups have shape {groups.shape}",
            f"pass [batch, contexts, tokens] with batch {values.shape[0]} and contexts {values.shape[1]}, as in bias",
        )
    if groups.dtype.kind not in "iu":
        raise ParameterError(f"token_groups are {groups.dtype}", "pass integers: the group of each token, or -1")
    wrong = np.argwhere(~(np.abs(values) <= MAX_BIAS))  # not a number is not below it either
    if wrong.size:
        row, context, group, position = (int(index) for index in wrong[0])
        raise ParameterError(
            f"bias is {values[tuple(wrong[0])]:g} for row {row}, context {context}, group {group}, position {position}",
            f"pass numbers within -{MAX_BIAS:g}..{MAX_BIAS:g}",
        )
    wrong = np.argwhere((groups < -1) | (groups >= values.shape[2]))
    if wrong.size:
        row, context, token = (int(index) for index in wrong[0])
        raise ParameterError(
            f"token {token} of row {row}, context {context} is in group {groups[tuple(wrong[0])]}",
            f"use 0..{values.shape[2] - 1}, the groups of bias, or -1 for no group",
        )


def tie_matrix(rows: int, contexts: int, tied_rows: int) -> NDArray[np.float32]:
    """The `tie` input, float32 [rows, contexts, contexts], with the first `tied_rows` rows tied and the others free.

    A free row has the identity. In a tied row all editorial contexts (s >= 1) are one shared vector, so each receives
    the mean of their updates; the main context is not affected. Raises ParameterError for rows or contexts below 1, or
    tied_rows outside 0..rows.
    """
    if rows < 1 or contexts < 1:
        raise ParameterError(f"rows={rows} and contexts={contexts} must both be at least 1")
    if not 0 <= tied_rows <= rows:
        raise ParameterError(f"tied_rows={tied_rows} must lie in 0..{rows}, the number of rows")
    tie = np.broadcast_to(np.eye(contexts, dtype=np.float32), (rows, contexts, contexts)).copy()
    if contexts > 1:
        tie[:tied_rows, 1:, 1:] = 1.0 / (contexts - 1)
    return tie
