"""The operator between segments: cross attention with the energy update. README.md has the maths.

This package imports only numpy. `ebca.plugins.energy_attention.onnx_model` needs onnx, and is for export only.
"""

from ebca.plugins.energy_attention.contract import (
    GUIDED,
    GUIDED_VARIANTS,
    MAX_BIAS,
    MIN_WEIGHT_SUM,
    TENSOR_DOCS,
    VARIANTS,
    Signature,
    TensorSpec,
    check_guidance,
    check_weights,
    is_guided,
    plain,
    signature,
    tie_matrix,
)
from ebca.plugins.energy_attention.reference import EnergyAttentionResult, energy_attention

__all__ = [
    "GUIDED",
    "GUIDED_VARIANTS",
    "MAX_BIAS",
    "MIN_WEIGHT_SUM",
    "TENSOR_DOCS",
    "VARIANTS",
    "EnergyAttentionResult",
    "Signature",
    "TensorSpec",
    "check_guidance",
    "check_weights",
    "energy_attention",
    "is_guided",
    "plain",
    "signature",
    "tie_matrix",
]
