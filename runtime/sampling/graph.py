"""Sampling on a device without the host: the whole run as one graph launch, or one launch per evaluation when a
callback observes it.

Latents, the history of noise predictions, and everything that changes between evaluations are in device memory (see
`ebca.plugins.sampling`). One recorded evaluation therefore serves all of them, and the host launches the next without
waiting for a result.
"""

import time

import numpy as np

from ebca.engines.machine.memory import nbytes
from ebca.errors import NumericalError
from ebca.plugins.sampling import EMBED, KERNELS, STATE
from ebca.runtime.devices.device import GraphDevice, Memory, MirroredBuffer, Recording
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.time_table import TimeTable, in_words
from ebca.runtime.sampling.device_known import DeviceKnown
from ebca.runtime.sampling.exclusion import DeviceExclusion
from ebca.runtime.sampling.progress import OnStep, StepInfo, report
from ebca.runtime.sampling.sampler import SamplerInputs, Samples
from ebca.runtime.sampling.tables import SchedulerTable

# Capacity grows in these increments, so that most numbers of evaluations need no new recording.
_ROOM = 64


class GraphSampler:
    """Buffers and recordings of one executor. Not thread-safe: one per session.

    Args:
        executor: its buffers are on the device.
        device: records and replays.
        images: per call; the executor has one row per image, or two with guidance.
    """

    def __init__(self, executor: Executor, device: GraphDevice, images: int) -> None:
        self._executor = executor
        self._device = device
        self._images = images
        self._state: dict[str, MirroredBuffer] = {}
        self._history: object = None
        self._table: TimeTable | None = None
        self._exclusion: DeviceExclusion | None = None
        self._start: Memory | None = None
        self._known: DeviceKnown | None = None
        self._draws = False
        self._room = 0
        self._recorded: dict[tuple[str, bool], Recording] = {}
        self._chain: tuple[tuple[str, ...], bool, Recording] | None = None

    def prepare(self, inputs: SamplerInputs) -> None:
        """See `ebca.runtime.sampling.sampler.Sampler`."""
        table = _table(inputs)
        self._reserve(table.evaluations)
        variants = dict.fromkeys(inputs.variant(index) for index in range(table.evaluations))
        # Opening a component outdates recordings, so everything is opened first.
        for variant in variants:
            self._executor.calls(variant, embedded=self._table is not None)
        self._fill(inputs, table)
        if inputs.extra_channels is not None:
            sample = self._executor.sample
            rows = sample.reshape(-1, self._images, *sample.shape[1:])
            rows[:, :, self._executor.noise.shape[1] :] = inputs.extra_channels
        self._executor.set_control(inputs.controls[0])
        if self._exclusion is not None:
            assert inputs.subjects is not None, "an executor with groups of tokens serves runs with subjects"
            self._exclusion.begin(inputs.subjects)
        self._executor.upload()
        self._device.upload(list(self._state.values()))
        known = inputs.stepper.known(inputs.latents)
        self._draws = known is not None
        if known is not None:
            self._reserve_known().begin(known)
        if self._table is not None:
            # Not part of any graph, since it runs once.
            self._device.run(self._table.call)
        for variant in variants:
            self.record(variant)

    def run(self, inputs: SamplerInputs, on_step: OnStep | None = None) -> Samples:
        """See `ebca.runtime.sampling.sampler.Sampler`.

        With `on_step` the host waits for every evaluation and can cancel after it. Without it, all evaluations are one
        launch, and `seconds` gives each an equal share of the time.
        """
        timesteps = tuple(_table(inputs).timesteps.tolist())
        variants = [inputs.variant(index) for index in range(len(timesteps))]
        if on_step is None:
            chain = self._chained(tuple(variants))
            began = time.perf_counter()
            chain()
            latents = self.latents()
            share = (time.perf_counter() - began) / len(variants)
            return Samples(np.array(latents), timesteps, [share] * len(variants))
        seconds = []
        for index, variant in enumerate(variants):
            began = time.perf_counter()
            self.record(variant)()
            latents = self.latents()
            seconds.append(time.perf_counter() - began)
            self._executor.download()
            done = index, len(variants), timesteps[index]
            report(on_step, StepInfo(*done, latents, self._executor.contexts_out, _table(inputs).scale_after(index)))
        return Samples(np.array(latents), timesteps, seconds)

    def record(self, variant: str) -> Recording:
        """Record an evaluation on first use. Calling the result launches the next evaluation without waiting for it.

        The counter of evaluations is in device memory, so one recording serves all of them.
        """
        key = variant, self._draws
        if key not in self._recorded:
            embedded = self._table is not None
            calls = self._executor.calls(variant, embedded=embedded)
            begin, end, advance = (self._device.sampling(name, self._arrays()) for name in KERNELS)
            before = [begin, self._device.sampling(EMBED, self._arrays())] if embedded else [begin]
            if self._draws:
                before.append(self._reserve_known().call)
            after = [end, advance] if self._exclusion is None else [end, self._exclusion.call, advance]
            # Only the UNet is warmed up: its outputs are overwritten before the sampler reads them.
            self._recorded[key] = self._device.graph([*before, *calls, *after], warm=calls)
        return self._recorded[key]

    def latents(self) -> np.ndarray:
        """Wait for the device. Returns a view of the latents [n,C,h,w] after the last launched evaluation.

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

    def _chained(self, variants: tuple[str, ...]) -> Recording:
        """The evaluations of a run as one launch. The latest one is kept for reuse."""
        if self._chain is None or self._chain[:2] != (variants, self._draws):
            self._chain = None
            recordings = [self.record(variant) for variant in variants]
            self._chain = variants, self._draws, self._device.chain(recordings)
        return self._chain[2]

    def _fill(self, inputs: SamplerInputs, table: SchedulerTable) -> None:
        """Write a run's tables and initial latents into the host's copy of the state."""
        host = {name: buffer.host for name, buffer in self._state.items()}
        m = table.evaluations
        host["step"][0] = host["bad"][0] = 0
        host["carry"][0] = inputs.carry_edits
        host["guidance_scale"][0] = 1.0 if inputs.guidance_scale is None else inputs.guidance_scale
        host["timesteps"][:m] = table.timesteps
        host["input_scale"][:m] = table.input_scale
        for i in range(m):
            row = table.weights(i)
            host["coefficients"][i, : len(row)] = row
        for i, control in enumerate(inputs.controls):
            values = (control.weights, control.gamma_attn, control.gamma_norm)
            host["controls"][i] = np.concatenate([np.ravel(value) for value in values])
        host["start"][...] = np.multiply(inputs.latents, table.init_noise_sigma, dtype=np.float64)
        host["latents"][...] = host["start"]

    def _arrays(self) -> dict[str, object]:
        state = {name: buffer.array for name, buffer in self._state.items()}
        arrays = {**state, "history": self._history, **self._executor.arrays}
        if self._table is not None:
            arrays["embeddings"] = self._table.words
            arrays["time_embeddings"] = self._executor.buffers.time_embeddings.words
        return arrays

    def _reserve(self, evaluations: int) -> None:
        """Make room for this many evaluations. New buffers invalidate recordings, which hold addresses."""
        if evaluations <= self._room:
            return
        room = -(-evaluations // _ROOM) * _ROOM
        arrays = self._allocate(room)
        history = arrays.pop("history")
        state = {name: self._device.share(array) for name, array in arrays.items()}
        # Assigned together: the capacity must match the buffers even if an allocation fails.
        self._state, self._history, self._room = state, history, room
        self._recorded.clear()
        self._chain = self._table = self._exclusion = self._known = None
        if self._executor.unet.time_step is not None and in_words(self._executor.buffers):
            self._table = self._executor.time_table(state["timesteps"].array)
            for name, values in zip(("embedding_base", "embedding_stride"), self._table.gather(), strict=True):
                memory = self._device.allocate(values.nbytes).view(0, values.shape, values.dtype)
                self._state[name] = self._device.share(memory)
                self._state[name].host[...] = values
        if (guided := self._executor.buffers.guided) is not None:
            self._exclusion = DeviceExclusion(guided, self._device, state["step"].array, room)

    def _reserve_known(self) -> DeviceKnown:
        """Made by the first run of a stochastic scheduler, since it takes as much memory as the history."""
        if self._known is None:
            assert self._start is not None, "prepare has made room"
            shape = self._state["start"].host.shape
            self._known = DeviceKnown(self._device, self._state["step"].array, self._start, shape, self._room)
        return self._known

    def _allocate(self, room: int) -> dict[str, object]:
        executor = self._executor
        rows, contexts, tokens = (executor.sizes[name] for name in ("batch", "contexts", "tokens"))
        _, channels, height, width = executor.noise.shape
        sizes = {
            "m": room,
            "m+1": room + 1,
            "n": self._images,
            "C": channels,
            "h": height,
            "w": width,
            "R*K": rows * contexts * (tokens + 2),
        }
        arrays: dict[str, object] = {}
        for name, tensor in STATE.items():
            shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape)
            memory = self._device.allocate(nbytes(shape, tensor.dtype))
            if name == "start":
                self._start = memory
            arrays[name] = memory.view(0, shape, tensor.dtype)
        return arrays


def _table(inputs: SamplerInputs) -> SchedulerTable:
    table = inputs.stepper.table
    assert table is not None, "the stepper needs the host between evaluations"
    return table
