"""A look inside an evaluation."""

import numpy as np

from ebca.errors import NumericalError
from ebca.runtime.execution.executor import Executor


def check_finite(executor: Executor, variant: str, timestep: float) -> None:
    """Raise NumericalError, naming the first segment to blame, where noise prediction or contexts are not finite."""
    if np.isfinite(executor.noise).all() and np.isfinite(executor.contexts_out).all():
        return
    culprit = executor.first_nonfinite(variant) or "the last segment"
    given = [name for name in ("sample", "contexts") if not np.isfinite(getattr(executor, name)).all()]
    remedy = (
        f"the {' and the '.join(given)} given to it had such values already"
        if given
        else "lower gamma_attn and gamma_norm, or check the checkpoint"
    )
    raise NumericalError(f"the result at timestep {timestep:g} is not finite, first in {culprit}", remedy)
