"""ControlNets of one run, as samplers take them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ebca.runtime.execution.residuals import ControlHint


@dataclass(frozen=True, eq=False)
class ControlInputs:
    """Encoded images, and when they act.

    Attributes:
        hints: one for each ControlNet.
        active: for each control of the run, the indices of the ControlNets that run, ascending.
    """

    hints: Sequence[ControlHint]
    active: Sequence[tuple[int, ...]]
