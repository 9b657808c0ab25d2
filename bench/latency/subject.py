"""The engine under test: its UNet bound at one size, with inputs and controls set."""

import numpy as np

from ebca.bench.timing import Contender
from ebca.engines.contract.accuracy import FULL_UNET_LIMITS, UNET_LIMITS, relative_l2
from ebca.errors import NumericalError
from ebca.runtime.diagnostics.trial import random_conditions
from ebca.runtime.engine import Engine
from ebca.runtime.execution.control import EnergyControl, resolve

FULL_UNET = "one_piece"
"""The row of the full UNet as one graph, under the name that stored results and `--compare-with` have for it."""

_TOKENS = 77
_TIMESTEP = 500.0


class Subject:
    """One UNet evaluation of an opened engine on random inputs of a fixed seed. Owns the executor.

    Args:
        engine: must outlive this object.
        height, width: pixels, None for the model's own size.
        batch_size: images; the UNet has two rows for each.
        gamma_attn, gamma_norm: of `step`.
        precision, threads: what the engine was opened with.

    Raises:
        ParameterError: a size that the model does not support, or a gamma that is not finite.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        height: int | None,
        width: int | None,
        batch_size: int,
        gamma_attn: float,
        gamma_norm: float,
        precision: str,
        threads: int,
    ) -> None:
        manifest = engine.manifest
        self.engine, self.precision, self.threads = engine, precision, threads
        # A session checks the size and knows the default.
        with engine.session(height, width, batch_size) as session:
            self.height, self.width = session.height, session.width
        downscale = manifest.vae.downscale if manifest.vae else 8
        self.sizes = {
            "batch": 2 * batch_size,
            "contexts": 1,
            "tokens": manifest.text_encoder.max_length if manifest.text_encoder else _TOKENS,
            "height": self.height // downscale,
            "width": self.width // downscale,
        }
        layers = manifest.unet.layers
        self.control = resolve(EnergyControl(gamma_attn, gamma_norm), layers, self.sizes)
        self._zero = resolve(EnergyControl(), layers, self.sizes)
        self.executor = engine.executor(self.sizes)
        rng = np.random.default_rng(0)
        self.executor.sample[...] = rng.standard_normal(self.executor.sample.shape, np.float32)
        self.executor.set_conditions(random_conditions(manifest.unet, self.sizes, rng))
        self.executor.timestep[...] = _TIMESTEP
        self.executor.set_control(self.control)

    @property
    def limit(self) -> float:
        """Largest relative L2 error that passes."""
        return UNET_LIMITS[self.precision]

    def step(self) -> np.ndarray:
        """An EBCU step. Returns the noise prediction, a view that the next step overwrites."""
        self.executor.run("update")
        return self.executor.noise

    def plain_step(self) -> np.ndarray:
        """A step of the same UNet with gammas of 0, which computes no energy update."""
        self.executor.run("attention")
        return self.executor.noise

    def contenders(self) -> list[Contender]:
        return [Contender("unet_step", self.step), Contender("unet_step_vanilla", self.plain_step)]

    def check(self) -> dict[str, float]:
        """Check without another implementation: results are finite, and a step with gammas of 0 is the plain UNet.

        Raises:
            NumericalError: they are not.
        """
        for name, call in (("unet_step", self.step), ("unet_step_vanilla", self.plain_step)):
            if not np.isfinite(call()).all():
                raise NumericalError(f"the result of {name} is not finite", "nothing was timed")
        plain = self.plain_step().copy()
        self.executor.set_control(self._zero)
        zero = self.step().copy()
        self.executor.set_control(self.control)
        return {"zero_gamma/unet_step_vanilla": self.compare("zero_gamma", zero, "unet_step_vanilla", plain)}

    def compare(self, name: str, actual: np.ndarray, reference: str, expected: np.ndarray) -> float:
        """Relative L2 of two noise predictions, `name` being a row of the table.

        Raises:
            NumericalError: above the limit.
        """
        error = relative_l2(actual, expected)
        limit = FULL_UNET_LIMITS[self.precision] if name == FULL_UNET else self.limit
        if not error <= limit:
            raise NumericalError(
                f"{name} differs from {reference} by {error:.1e} (relative L2, limit {limit:.0e}), so "
                "nothing was timed",
                "check the engine with `ebca-doctor --engine`, and that --model is what it was exported from",
            )
        return error
