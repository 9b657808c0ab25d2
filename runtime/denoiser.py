"""A single UNet evaluation, from numpy arrays to numpy arrays."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebca.engines.contract.manifest import UNetSpec
from ebca.errors import ParameterError
from ebca.runtime import memory
from ebca.runtime.devices.choice import AUTO
from ebca.runtime.engine import Engine, load
from ebca.runtime.execution.control import EnergyControl, resolve
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import check_finite
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.validation import as_numbers

_KEPT_SIZES = 2


@dataclass(frozen=True, repr=False)
class Denoised(Shown):
    """Outputs of one evaluation.

    Attributes:
        noise: [B,C,h,w] float32, the noise prediction.
        contexts: [B,S,T,D] float32 after the last layer.
        energies: [L,2,B,S] float32 (attention, norm), or None if not requested.
    """

    noise: np.ndarray
    contexts: np.ndarray
    energies: np.ndarray | None = None


class Denoiser:
    """The split UNet of an engine directory as a function. Calls from several threads run one at a time.

    Args:
        engine: an opened engine, or an engine directory as in `ebca.load`.
        device, backend, precision, threads: as in `ebca.load`; ignored for an opened engine.

    Raises:
        EngineError, BackendError, ParameterError: as in `ebca.load`.
    """

    def __init__(
        self,
        engine: Engine | str | Path,
        device: str = AUTO,
        backend: str | None = None,
        *,
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        self.engine = (
            engine
            if isinstance(engine, Engine)
            else load(engine, device, backend, precision=precision, threads=threads)
        )
        self._executors: OrderedDict[tuple[int, ...], Executor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self,
        sample: np.ndarray,
        timestep: float | np.ndarray,
        contexts: np.ndarray,
        control: EnergyControl | None = None,
        *,
        text_embeds: np.ndarray | None = None,
        time_ids: np.ndarray | None = None,
        energies: bool = False,
    ) -> Denoised:
        """Evaluate the UNet.

        Args:
            sample: [B,C,h,w] float32, scaled latents.
            timestep: a number, or [B].
            contexts: [B,S,T,D] float32; s = 0 is the main prompt. With classifier-free guidance, the first half of the
                rows is unconditional.
            control: the energy update; None: no update.
            text_embeds: [B,P] float32, pooled embeddings; needed exactly by a UNet that takes them, as Stable Diffusion
                XL's.
            time_ids: [B,6] float32, likewise: original height and width, top and left of the crop, target height and
                width.
            energies: compute the energies too.

        Raises:
            ParameterError: a shape or a value that does not fit the engine, or an engine that is closed.
            OutOfMemoryError: there is too little memory, found before anything is computed.
            NumericalError: the result is not finite.
        """
        self.engine.check_open()
        unet = self.engine.manifest.unet
        sample = _array("sample", sample, "[batch, channels, height, width]", 4)
        if control is not None and not isinstance(control, EnergyControl):
            raise ParameterError(f"control is of type {type(control).__name__}", "give ebca.EnergyControl, or None")
        contexts = _array("contexts", contexts, "[batch, contexts, tokens, width]", 4)
        rows, channels, height, width = sample.shape
        if channels != unet.in_channels:
            raise ParameterError(f"sample has {channels} channels", f"give {unet.in_channels}, as this UNet takes")
        if contexts.shape[0] != rows or contexts.shape[3] != unet.context_dim:
            raise ParameterError(
                f"contexts have shape {list(contexts.shape)}", f"give [{rows}, contexts, tokens, {unet.context_dim}]"
            )
        added = _added(unet, rows, {"text_embeds": text_embeds, "time_ids": time_ids})
        times = as_numbers("timestep", timestep, f"a number, or one per row [{rows}]")
        if times.shape not in ((), (1,), (rows,)) or not np.isfinite(times).all():
            raise ParameterError(f"timestep is {timestep!r}", f"give one finite number, or one per row [{rows}]")
        sizes = {
            "batch": rows, "contexts": contexts.shape[1], "tokens": contexts.shape[2], "height": height, "width": width,
        }  # fmt: skip
        what = f"{rows} rows of {height} x {width} latents"
        vae = self.engine.manifest.vae
        side = vae.downscale if vae else rules.DEFAULT_DOWNSCALE
        memory.check_size(height * side, width * side)
        memory.check_evaluation(self.engine, sizes, what)
        arrays = resolve(control or EnergyControl(), unet.layers, sizes)
        variant = "energies" if energies else arrays.variant
        with self._lock, memory.described_shortage(what):
            executor = self._executor(sizes)
            executor.sample[...], executor.timestep[...] = sample, times
            executor.set_conditions({"contexts": contexts, **added})
            executor.set_control(arrays)
            executor.run(variant)
            check_finite(executor, variant, float(times.flat[0]))
            return Denoised(
                executor.noise.copy(), executor.contexts_out.copy(), executor.energies.copy() if energies else None
            )

    def __repr__(self) -> str:
        return f"<ebca.Denoiser of {self.engine!r}>"

    def _executor(self, sizes: dict[str, int]) -> Executor:
        key = tuple(sizes.values())
        if key not in self._executors:
            self._executors[key] = self.engine.executor(sizes)
            if len(self._executors) > _KEPT_SIZES:
                self._executors.popitem(last=False)
        self._executors.move_to_end(key)
        return self._executors[key]


def _added(unet: UNetSpec, rows: int, given: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """What a UNet takes beside sample, timestep and contexts, checked: by name, [B,P] and [B,6], or nothing."""
    found = {}
    for name, value in given.items():
        if name not in unet.inputs:
            if value is not None:
                raise rules.ADDED_ENGINE.error(name=name)
            continue
        width = unet.tensors[name].shape[1]
        if value is None:
            raise ParameterError(f"{name} is missing", f"give [{rows}, {width}], as this UNet takes")
        array = as_numbers(name, value, f"an array [{rows}, {width}]")
        if array.shape != (rows, width):
            raise rules.POOLED_SHAPE.error(name=name, shape=list(array.shape), batch=rows, width=width)
        if not np.isfinite(array).all():
            raise rules.EMBEDS_NOT_FINITE.error(name=name)
        found[name] = array
    return found


def _array(name: str, value: np.ndarray, axes: str, ndim: int) -> np.ndarray:
    array = as_numbers(name, value, axes)
    if array.ndim != ndim or 0 in array.shape:
        raise ParameterError(f"{name} has shape {list(array.shape)}", f"give {axes}")
    return array
