"""Sampling step by step: the host computes guidance and scheduler steps between the evaluations."""

import time
from collections.abc import Sequence

import numpy as np

from ebca.plugins.energy_attention import plain
from ebca.plugins.sampling.guidance import guide
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import Probe, check_finite, run_probed
from ebca.runtime.sampling.exclusion import HostExclusion
from ebca.runtime.sampling.progress import OnStep, StepInfo, check_latents, report
from ebca.runtime.sampling.sampler import Evaluation, SamplerInputs, Samples


class HostSampler:
    """Runs any stepper on an executor of any device.

    Args:
        executor: with guidance, its last rows, one per image, are conditional.
        energies: record the energies.
        probe: called with q and k of every layer at every evaluation.
    """

    def __init__(self, executor: Executor, *, energies: bool = False, probe: Probe | None = None) -> None:
        self._executor = executor
        self._energies = energies
        self._probe = probe
        self._embeddings: dict[float, dict[str, np.ndarray]] = {}
        self._exclusion: HostExclusion | None = None

    def prepare(self, inputs: SamplerInputs) -> None:
        """See `ebca.runtime.sampling.sampler.Sampler`."""
        variants = {self._variant(inputs, index) for index in range(len(inputs.controls))}
        if self._probe is None and any(self._executor.runs_steps(variant) for variant in variants):
            self._embeddings = _embeddings(self._executor, inputs.stepper.timesteps)
        residuals = self._executor.residuals
        residuals.load(inputs.controlnets.hints if inputs.controlnets else ())
        evaluations = {
            (self._variant(inputs, index), self._active(inputs, index)) for index in range(len(inputs.controls))
        }
        for variant, active in sorted(evaluations):
            residuals.active = active
            self._executor.record(variant, embedded=bool(self._embeddings))
        if inputs.extra_channels is not None:
            channels = self._executor.noise.shape[1]
            self._rows(self._executor.sample, inputs)[:, :, channels:] = inputs.extra_channels

    def run(self, inputs: SamplerInputs, on_step: OnStep | None = None) -> Samples:
        """See `ebca.runtime.sampling.sampler.Sampler`."""
        stepper, executor = inputs.stepper, self._executor
        guided = executor.buffers.guided
        self._exclusion = HostExclusion(guided, inputs.subjects) if guided and inputs.subjects else None
        timesteps: list[float] = []
        seconds: list[float] = []
        energies: list[np.ndarray] = []
        carry = inputs.carry_edits and executor.sizes["contexts"] > 1
        latents, total = inputs.latents, stepper.total
        stepper.start(latents)
        for index in range(total):
            evaluation = stepper.evaluation(index)
            seconds.append(self._evaluate(evaluation, inputs))
            noise = guide(self._rows(executor.noise, inputs), inputs.guidance_scale, inputs.image_guidance_scale)
            if carry:
                executor.contexts[:, 1:] = executor.contexts_out[:, 1:]
            timesteps.append(evaluation.timestep)
            if self._energies:
                energies.append(executor.energies.copy())
            with np.errstate(over="ignore", invalid="ignore"):
                latents = stepper.step(index, noise)
            check_latents(latents, evaluation.timestep)
            scale = 1.0 if stepper.table is None else stepper.table.scale_after(index)
            report(on_step, StepInfo(index, total, evaluation.timestep, latents, executor.contexts_out, scale))
        return Samples(np.array(latents), tuple(timesteps), seconds, np.stack(energies) if energies else None)

    def _evaluate(self, evaluation: Evaluation, inputs: SamplerInputs) -> float:
        """Run the UNet. Returns the seconds it took."""
        executor, variant = self._executor, self._variant(inputs, evaluation.control)
        if self._exclusion is not None:
            self._exclusion.apply(evaluation.control)
        # With guidance, all parts of the rows get the same latents.
        self._rows(executor.sample, inputs)[:, :, : executor.noise.shape[1]] = evaluation.model_input
        executor.timestep[...] = evaluation.timestep
        executor.set_control(inputs.controls[evaluation.control])
        executor.residuals.active = self._active(inputs, evaluation.control)
        began = time.perf_counter()
        if self._embeddings:
            for name, row in self._embeddings[evaluation.timestep].items():
                executor.buffers.tensors[name][...] = row
        if self._probe is None:
            executor.run(variant, embedded=bool(self._embeddings))
        else:
            run_probed(executor, variant, self._probe)
        seconds = time.perf_counter() - began
        check_finite(executor, variant, evaluation.timestep)
        return seconds

    @staticmethod
    def _active(inputs: SamplerInputs, control: int) -> tuple[int, ...]:
        """Which ControlNets run at an evaluation with this control."""
        return inputs.controlnets.active[control] if inputs.controlnets else ()

    def _variant(self, inputs: SamplerInputs, control: int) -> str:
        variant = inputs.variant(control)
        return variant.replace(plain(variant), "energies") if self._energies else variant

    @staticmethod
    def _rows(array: np.ndarray, inputs: SamplerInputs) -> np.ndarray:
        """[B,...] -> [parts,n,...]."""
        return array.reshape(-1, len(inputs.latents), *array.shape[1:])


def _embeddings(executor: Executor, timesteps: Sequence[float]) -> dict[float, dict[str, np.ndarray]]:
    """The embeddings of all timesteps, by name, from one call; empty if the host has no access to the buffers."""
    if executor.unet.time_step is None or executor.device.graphs is not None:
        return {}
    times = executor.device.allocate(4 * len(timesteps)).view(0, (len(timesteps),), np.float32)
    times[...] = timesteps
    table = executor.time_table(times)
    executor.device.run(table.call)
    return {t: {name: rows[i] for name, rows in table.rows.items()} for i, t in enumerate(timesteps)}
