"""The sampling loop on a device: the host launches steps and waits for nothing between them.

Latents, the history of noise predictions and all that differs from step to step lie on the device (see
`ebca.plugins.sampling`), so one recorded step serves every step, and several recorded together serve as one launch.
"""

import time
from collections.abc import Sequence

import numpy as np

from ebca.engines.backend import Call
from ebca.engines.memory import nbytes
from ebca.errors import NumericalError
from ebca.plugins.sampling import KERNELS, STATE
from ebca.runtime.control import ControlArrays
from ebca.runtime.cuda import CudaDevice
from ebca.runtime.devices import Shared
from ebca.runtime.executor import Executor
from ebca.runtime.sampling import OnStep, StepInfo, report
from ebca.runtime.schedulers import SchedulerTable

# Tables grow in such steps, so that another number of evaluations is not another recording.
_ROOM = 64


class Loop:
    """Buffers and recordings of one executor. Not thread-safe: one per session.

    Args:
        executor: on a CUDA device.
        pictures: per call; the executor has as many rows, or twice as many with guidance.
    """

    def __init__(self, executor: Executor, device: CudaDevice, pictures: int) -> None:
        self._executor = executor
        self._device = device
        self._pictures = pictures
        self._state: dict[str, Shared] = {}
        self._history: object = None
        self._room = 0
        self._recorded: dict[tuple[str, ...], Call] = {}

    def start(
        self,
        table: SchedulerTable,
        noise: np.ndarray,
        controls: Sequence[ControlArrays],
        *,
        guidance_scale: float | None,
        known: np.ndarray | None = None,
        carry: bool = False,
    ) -> None:
        """Upload all that a generation needs. The executor's contexts hold the prompts' embeddings already.

        Args:
            table: of the scheduler.
            noise: start noise [n,C,h,w] of unit variance.
            controls: one per evaluation.
            guidance_scale: None: conditional rows only.
            known: [n,K,h,w] channels that follow the latents into the UNet of an inpainting model.
            carry: contexts of editing prompts go on from evaluation to evaluation.
        """
        executor, m = self._executor, table.evaluations
        self._reserve(m)
        host = {name: shared.host for name, shared in self._state.items()}
        host["step"][0] = host["bad"][0] = 0
        host["carry"][0] = carry
        host["guidance_scale"][0] = 1.0 if guidance_scale is None else guidance_scale
        host["timesteps"][:m] = table.timesteps
        host["input_scale"][:m] = table.input_scale
        for i in range(m):
            row = table.row(i)
            host["coefficients"][i, : len(row)] = row
        for i, control in enumerate(controls):
            values = (control.weights, control.gamma_attn, control.gamma_norm)
            host["controls"][i] = np.concatenate([np.ravel(value) for value in values])
        host["start"][...] = np.multiply(noise, table.init_noise_sigma, dtype=np.float64)
        host["latents"][...] = host["start"]
        if known is not None:
            rows = executor.sample.reshape(-1, self._pictures, *executor.sample.shape[1:])
            rows[:, :, executor.noise.shape[1] :] = known
        executor.set_control(controls[0])
        executor.upload()
        self._device.upload(list(self._state.values()))

    def sample(
        self, controls: Sequence[ControlArrays], timesteps: Sequence[float], on_step: OnStep | None = None
    ) -> tuple[np.ndarray, list[float]]:
        """Run every evaluation after `start`. Returns the latents [n,C,h,w] and the seconds of each evaluation.

        With `on_step` every evaluation is a launch of its own, and the host waits for it and can cancel after it.
        Without, all of them are one launch, and share its time.

        Raises:
            CancelledError: `on_step` returned False.
            NumericalError: as `latents`.
        """
        variants = [control.variant for control in controls]
        total, seconds = len(variants), list[float]()
        for first in range(0, total, 1 if on_step else total):
            together = variants[first : first + 1] if on_step else variants
            self.record(together)
            began = time.perf_counter()
            self.run(together)
            latents = self.latents()
            seconds += [(time.perf_counter() - began) / len(together)] * len(together)
            if on_step is not None:
                self._executor.download()
                report(on_step, StepInfo(first, total, timesteps[first], latents, self._executor.contexts_out))
        return np.array(latents), seconds

    def run(self, variants: Sequence[str]) -> None:
        """Launch the next evaluations, one variant each, as one graph. Does not wait."""
        self.record(variants)
        self._recorded[tuple(variants)]()

    def record(self, variants: Sequence[str]) -> None:
        """Record evaluations that are launched together, once."""
        key = tuple(variants)
        if key not in self._recorded:
            calls: list[Call] = []
            for variant in key:
                self._executor.warm(variant)
                begin, end, advance = (self._device.kernels.sampling(name, self._arrays()) for name in KERNELS)
                calls += [begin, *self._executor.calls(variant), end, advance]
            self._recorded[key] = self._device.graph(calls)

    def latents(self) -> np.ndarray:
        """Wait, and check: the latents [n,C,h,w] after the last evaluation that was launched; a view.

        Raises:
            NumericalError: a result was not finite; the message names the timestep.
        """
        self._device.download([self._state[name] for name in ("latents", "bad", "timesteps")])
        bad = int(self._state["bad"].host[0])
        if bad:
            raise NumericalError(
                f"the result at timestep {self._state['timesteps'].host[bad - 1]:g} is not finite; "
                "lower gamma_attn and gamma_norm, or check the checkpoint"
            )
        return self._state["latents"].host

    def _arrays(self) -> dict[str, object]:
        state = {name: shared.array for name, shared in self._state.items()}
        return {**state, "history": self._history, **self._executor.arrays}

    def _reserve(self, evaluations: int) -> None:
        """Buffers for so many evaluations; larger ones are new ones, and recordings hold addresses."""
        if evaluations <= self._room:
            return
        self._room = -(-evaluations // _ROOM) * _ROOM
        executor = self._executor
        rows, contexts, tokens = (executor.sizes[name] for name in ("batch", "contexts", "tokens"))
        _, channels, height, width = executor.noise.shape
        sizes = {
            "m": self._room,
            "m+1": self._room + 1,
            "n": self._pictures,
            "C": channels,
            "h": height,
            "w": width,
            "R*K": rows * contexts * (tokens + 2),
        }
        self._recorded.clear()
        for name, tensor in STATE.items():
            shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape)
            array = self._device.allocate(nbytes(shape, tensor.dtype)).view(0, shape, tensor.dtype)
            if name == "history":
                self._history = array
            else:
                self._state[name] = self._device.share(array)
