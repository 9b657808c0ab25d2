"""The sampling loop on a device: one launch of all steps, or one of each where somebody looks on.

Latents, the history of noise predictions and all that differs from step to step lie on the device (see
`ebca.plugins.sampling`), so one recorded step serves every step, and the host needs no result to launch the next.
"""

import time
from collections.abc import Sequence

import numpy as np

from ebca.engines.machine.memory import nbytes
from ebca.errors import NumericalError
from ebca.plugins.sampling import KERNELS, STATE
from ebca.runtime.devices.cuda import CudaDevice, Recording
from ebca.runtime.devices.device import MirroredBuffer
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.execution.executor import Executor
from ebca.runtime.sampling.host import OnStep, StepInfo, report
from ebca.runtime.sampling.tables import SchedulerTable

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
        self._state: dict[str, MirroredBuffer] = {}
        self._history: object = None
        self._room = 0
        self._recorded: dict[str, Recording] = {}
        self._whole: tuple[tuple[str, ...], Recording] | None = None

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
        """Upload all that a generation needs, and record what it runs. The executor's contexts hold the prompts'
        embeddings already.

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
        for control in controls:
            self.record(control.variant)
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

        With `on_step` the host waits for every evaluation and can cancel after it. Without, all of them are one launch,
        and they share the time.

        Raises:
            CancelledError: `on_step` returned False.
            NumericalError: as `latents`.
        """
        variants = [control.variant for control in controls]
        if on_step is None:
            whole = self._chained(tuple(variants))
            began = time.perf_counter()
            whole()
            latents = self.latents()
            return np.array(latents), [(time.perf_counter() - began) / len(variants)] * len(variants)
        seconds = []
        for index, variant in enumerate(variants):
            began = time.perf_counter()
            self.record(variant)()
            latents = self.latents()
            seconds.append(time.perf_counter() - began)
            self._executor.download()
            report(on_step, StepInfo(index, len(variants), timesteps[index], latents, self._executor.contexts_out))
        return np.array(latents), seconds

    def _chained(self, variants: tuple[str, ...]) -> Recording:
        """The evaluations of a generation as one launch; the latest one is kept."""
        if self._whole is None or self._whole[0] != variants:
            self._whole = None
            self._whole = variants, self._device.chain([self.record(variant) for variant in variants])
        return self._whole[1]

    def record(self, variant: str) -> Recording:
        """Record an evaluation, once; calling the result launches the next one and waits for nothing.

        The counter of evaluations lies on the device, so one recording serves all of them.
        """
        if variant not in self._recorded:
            calls = self._executor.calls(variant)
            begin, end, advance = (self._device.kernels.sampling(name, self._arrays()) for name in KERNELS)
            # Run once by themselves the steps of the UNet change nothing that the loop reads again.
            self._recorded[variant] = self._device.graph([begin, *calls, end, advance], warm=calls)
        return self._recorded[variant]

    def latents(self) -> np.ndarray:
        """Wait, and check: the latents [n,C,h,w] after the last evaluation that was launched; a view.

        Raises:
            NumericalError: a result was not finite; the message names the timestep.
        """
        self._device.download([self._state[name] for name in ("latents", "bad", "timesteps")])
        bad = int(self._state["bad"].host[0])
        if bad:
            raise NumericalError(
                f"the result at timestep {self._state['timesteps'].host[bad - 1]:g} is not finite",
                "lower gamma_attn, gamma_norm or guidance_scale, or check the checkpoint",
            )
        return self._state["latents"].host

    def _arrays(self) -> dict[str, object]:
        state = {name: shared.array for name, shared in self._state.items()}
        return {**state, "history": self._history, **self._executor.arrays}

    def _reserve(self, evaluations: int) -> None:
        """Buffers for so many evaluations; larger ones are new ones, and recordings hold addresses."""
        if evaluations <= self._room:
            return
        room = -(-evaluations // _ROOM) * _ROOM
        executor = self._executor
        rows, contexts, tokens = (executor.sizes[name] for name in ("batch", "contexts", "tokens"))
        _, channels, height, width = executor.noise.shape
        sizes = {
            "m": room,
            "m+1": room + 1,
            "n": self._pictures,
            "C": channels,
            "h": height,
            "w": width,
            "R*K": rows * contexts * (tokens + 2),
        }
        arrays = {}
        for name, tensor in STATE.items():
            shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape)
            arrays[name] = self._device.allocate(nbytes(shape, tensor.dtype)).view(0, shape, tensor.dtype)
        history = arrays.pop("history")
        state = {name: self._device.share(array) for name, array in arrays.items()}
        # All or nothing: sizes are read off the arrays.
        self._state, self._history, self._room = state, history, room
        self._recorded.clear()
        self._whole = None
