"""Exclusive attention: every subject of a prompt gets a place of its own. README.md has the method.

Between two UNet evaluations it turns the maps of the subjects, which the guided variants of energy attention return,
into the bias of the next evaluation. This package imports only numpy.
"""

from ebca.plugins.exclusive_attention.contract import (
    EXCLUDE,
    MAX_STRENGTH,
    TENSORS,
    Tensor,
    check_strengths,
    check_subjects,
    sizes,
)
from ebca.plugins.exclusive_attention.tables import APART, WINDOW, Tables, tables

__all__ = [
    "APART",
    "EXCLUDE",
    "MAX_STRENGTH",
    "TENSORS",
    "WINDOW",
    "Tables",
    "Tensor",
    "check_strengths",
    "check_subjects",
    "sizes",
    "tables",
]
