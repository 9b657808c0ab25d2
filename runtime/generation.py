"""One generation in stages: encode prompts, prepare latents, sample, decode."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebca.engines.contract.directory import BUNDLED
from ebca.runtime.components import Components
from ebca.runtime.conditioning import controlnets
from ebca.runtime.conditioning import subjects as subjects_of_prompts
from ebca.runtime.conditioning.prompts import PromptEncoder, Prompts
from ebca.runtime.conditioning.subjects import Resolved
from ebca.runtime.conditioning.timeline import Timeline
from ebca.runtime.execution.executor import Executor
from ebca.runtime.images import outputs
from ebca.runtime.images.latents import ImageSource, InitialLatents, LatentPreparation
from ebca.runtime.noise import NormalStream
from ebca.runtime.request.inputs import recorded
from ebca.runtime.request.serialization import to_json
from ebca.runtime.request.validate import Target, Task, ValidRequest
from ebca.runtime.results import Result
from ebca.runtime.sampling.controlnets import ControlInputs
from ebca.runtime.sampling.host import HostSampler
from ebca.runtime.sampling.progress import OnStep
from ebca.runtime.sampling.repaint import RePaintSchedule, RePaintStepper
from ebca.runtime.sampling.sampler import Sampler, SamplerInputs, Samples, Stepper
from ebca.runtime.sampling.subjects import SubjectInputs
from ebca.runtime.sampling.table_stepper import TableStepper
from ebca.runtime.sampling.tables import SchedulerTable, load_alphas_cumprod, load_table
from ebca.runtime.schema import parameters as rules
from ebca.runtime.telemetry.attention_maps import AttentionMaps

OpenExecutor = Callable[[Mapping[str, np.ndarray], int], Executor]
"""Returns an executor of matching sizes that holds the given `Prompts.conditions`, for so many groups of tokens."""

OpenSampler = Callable[[Executor], Sampler | None]
"""Returns a sampler that runs an executor without the host; None if its device has none."""


class Stopwatch:
    """Measures consecutive stages, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def stage(self, name: str) -> None:
        """End the current stage, and name it."""
        now = time.perf_counter()
        self.seconds[name], self._began = now - self._began, now


class Generation:
    """Turns a validated request into images.

    Args:
        components: the opened engine.
        valid: the request.
        target: what it was validated against.
        size: of the images, (height, width) in pixels.
        downscale: pixels per latent.

    Raises:
        ParameterError: images that cannot be read, or schedules that do not fit the number of evaluations.
    """

    def __init__(
        self, components: Components, valid: ValidRequest, target: Target, size: tuple[int, int], downscale: int
    ) -> None:
        self._components = components
        self._valid = valid
        self._target = target
        self._size = size
        inputs, steps = valid.request.image_inputs, valid.steps
        self._table = None if valid.task is Task.REPAINT else self._load_table()
        self._repaint = self._repaint_schedule() if valid.task is Task.REPAINT else None
        if self._table is not None:
            # Schedules count evaluations, and both evaluations of a step count as a step.
            counts = self._table.remaining * self._table.order, self._table.evaluations
        else:
            counts = steps, steps
        self._evaluations = counts[1]
        self._timeline = Timeline.of(valid.request.guidance, *counts, valid.scheduler)
        self._strengths = subjects_of_prompts.strengths(valid.request.subject, *counts, valid.scheduler)
        self._source = ImageSource.load(inputs.image, inputs.mask, batch=target.batch, size=size, downscale=downscale)
        self._control_images = controlnets.load(valid.request.controlnets, target.batch, size)
        self._inputs = recorded(valid.request)
        self.seeds = valid.seeds or (secrets.randbits(32),)
        self._streams = [NormalStream(seed) for seed in self.seeds]

    def check(self) -> Mapping[str, Any]:
        """Check the texts, the last part of a request that is not checked when a generation is made. Nothing is
        computed.

        Returns:
            `Result.parameters` as `run` would return them.

        Raises:
            ParameterError: a word that is not in the prompt, or a text that is not valid Unicode.
        """
        request = self._valid.request
        encoder = PromptEncoder(self._components, self._target.batch)
        encoder.check(request.conditioning, request.guidance.edits, guided=self._valid.guided)
        return self._parameters(self._subjects())

    def run(self, open_executor: OpenExecutor, open_sampler: OpenSampler, on_step: OnStep | None) -> Result:
        """Run all stages. Raises the same errors as `Session.generate`."""
        request, watch = self._valid.request, Stopwatch()
        subjects = self._subjects()
        inputs_of_subjects = None if subjects is None else subjects.inputs
        encoder = PromptEncoder(self._components, self._target.batch)
        prompts = encoder.encode(request.conditioning, request.guidance.edits, guided=self._valid.guided)
        prompts = replace(prompts, unconditional_parts=max(self._valid.rows_per_image - 1, 1))
        if inputs_of_subjects is not None:
            inputs_of_subjects = inputs_of_subjects.with_tokens(prompts.conditional.shape[1])
        watch.stage("text_encoder")
        initial = self._initial_latents()
        control = self._control_inputs()
        watch.stage("vae_encoder")
        conditions = prompts.conditions(request.sizes, self._size)
        executor = open_executor(conditions, 0 if inputs_of_subjects is None else inputs_of_subjects.groups)
        inputs = self._sampler_inputs(prompts, initial, executor, inputs_of_subjects, control)
        maps = self._attention_maps(executor)
        if request.output != "latents":
            self._components.warm_up_decoder(self._target.latent_shape, tiled=request.vae_tiling)
        sampler = self._sampler(executor, inputs, maps, open_sampler)
        self._components.with_room(lambda: sampler.prepare(inputs))
        watch.stage("open")
        samples = sampler.run(inputs, on_step)
        watch.stage("sampling")
        images = None if request.output == "latents" else self._decode(samples.latents)
        self._components.flush_caches()
        watch.stage("vae")
        return Result(
            images,
            samples.latents,
            samples.energies,
            None if maps is None else maps.maps,
            samples.timesteps,
            _timings(watch.seconds, samples),
            self._parameters(subjects),
        )

    def _subjects(self) -> Resolved | None:
        """The subjects of the prompts; None if they are off."""
        request, shape = self._valid.request, self._target.latent_shape
        return subjects_of_prompts.of_images(
            request.subject, request.conditioning, self._components, self._strengths, shape, self._size
        )

    def _load_table(self) -> SchedulerTable:
        self._components.verify_tables()
        section = self._components.manifest.schedulers
        table = load_table(self._components.directory.path, section, self._valid.scheduler, self._valid.steps)
        return table if self._valid.strength is None else table.after(self._valid.skipped_steps)

    def _repaint_schedule(self) -> RePaintSchedule:
        self._components.verify_tables()
        settings = self._valid.repaint
        return RePaintSchedule(self._valid.steps, settings.jump_length, settings.jump_count, self._alphas_cumprod())

    def _alphas_cumprod(self) -> np.ndarray:
        return load_alphas_cumprod(self._components.directory.path, self._components.manifest.schedulers)

    def _initial_latents(self) -> InitialLatents:
        shape, tiled = self._target.latent_shape, self._valid.request.vae_tiling
        preparation = LatentPreparation(self._components, self._streams, shape, self._valid.latents, tiled=tiled)
        if self._source is None:
            return preparation.without_image()
        prepare: dict[Task, Callable[[ImageSource], InitialLatents]] = {
            Task.IMAGE_TO_IMAGE: preparation.of_image,
            Task.INPAINTING: partial(preparation.of_masked_image, whole=self._valid.strength is not None),
            Task.INSTRUCTION: partial(preparation.of_changed_image, parts=self._valid.rows_per_image),
            Task.REPAINT: preparation.of_kept_image,
        }
        return prepare[self._valid.task](self._source)

    def _control_inputs(self) -> ControlInputs | None:
        given = self._valid.request.controlnets
        if not given.each:
            return None
        return controlnets.encode(given, self._control_images, self._components, self._evaluations)

    def _sampler_inputs(
        self,
        prompts: Prompts,
        initial: InitialLatents,
        executor: Executor,
        subjects: SubjectInputs | None,
        control: ControlInputs | None,
    ) -> SamplerInputs:
        guidance, layers = self._valid.request.guidance, self._components.manifest.unet.layers
        latents = initial.noise
        if self._valid.strength is not None:
            assert self._table is not None and initial.clean is not None
            latents = self._table.add_noise(initial.clean, initial.noise, self._alphas_cumprod())
        return SamplerInputs(
            stepper=self._stepper(initial),
            latents=latents,
            controls=self._timeline.controls(prompts, layers, executor.sizes, self._update_mask()),
            guidance_scale=self._valid.guidance_scale if self._valid.guided else None,
            image_guidance_scale=self._valid.image_guidance_scale,
            extra_channels=initial.extra_channels,
            carry_edits=bool(guidance.edits) and not guidance.reset_edits,
            subjects=subjects,
            controlnets=control,
        )

    def _stepper(self, initial: InitialLatents) -> Stepper:
        if self._table is not None:
            return TableStepper(self._table, self._target.latent_shape, streams=self._streams)
        assert self._repaint is not None and self._source is not None and self._source.hole is not None
        assert initial.clean is not None
        return RePaintStepper(self._repaint, initial.clean, self._source.hole, self._streams, self._valid.repaint.eta)

    def _update_mask(self) -> np.ndarray | None:
        """[n or 1,1,h,w], 1 where the main context's update is computed: the hole; None without a mask."""
        if self._source is None or self._source.hole is None:
            return None
        inverted = self._valid.task is Task.REPAINT and self._valid.repaint.update_known
        return 1 - self._source.hole if inverted else self._source.hole

    def _attention_maps(self, executor: Executor) -> AttentionMaps | None:
        if not self._valid.request.telemetry.attention_maps:
            return None
        return AttentionMaps(self._components.manifest.unet, executor.sizes, self._target.batch)

    def _sampler(
        self, executor: Executor, inputs: SamplerInputs, maps: AttentionMaps | None, open_sampler: OpenSampler
    ) -> Sampler:
        """The device's sampler, unless telemetry, the stepper, ControlNets or guidance by an image need the host."""
        energies = self._valid.request.telemetry.energies
        on_device = None
        on_host = energies or maps is not None or inputs.controlnets is not None
        if inputs.stepper.table is not None and inputs.image_guidance_scale is None and not on_host:
            on_device = open_sampler(executor)
        return on_device or HostSampler(executor, energies=energies, probe=maps)

    def _decode(self, latents: np.ndarray) -> Any:
        request, source = self._valid.request, self._source
        # Decoding is the memory peak of a run, so drop the UNet's weights first.
        self._components.forget_weights()
        decoded = outputs.to_unit_range(self._components.decode(latents, tiled=request.vae_tiling))
        if not np.isfinite(decoded).all():
            raise rules.IMAGE_NOT_FINITE.error()
        if source is not None and source.mask is not None and request.image_inputs.composite:
            hole = source.mask.transpose(0, 2, 3, 1) > 0
            decoded = np.where(hole, decoded, source.pixels)
        return outputs.to_pil(decoded) if request.output == "pil" else decoded

    def _parameters(self, subjects: Resolved | None) -> Mapping[str, Any]:
        valid = self._valid
        asked = to_json(valid.request, embedded=False)
        # With initial latents, noise is drawn only where an image is encoded, and by stochastic schedulers.
        draws = self._table is not None and self._table.stochastic
        used = valid.latents is None or self._source is not None or draws
        seeds = list(self.seeds) if len(self.seeds) > 1 else self.seeds[0]
        made: dict[str, Any] = {
            "task": valid.task.value,
            **asked,
            "steps": valid.steps,
            "guidance_scale": valid.guidance_scale,
            "scheduler": valid.scheduler,
            "seed": seeds if used else None,
            "height": self._size[0],
            "width": self._size[1],
            "num_images": self._target.batch,
        }
        if subjects is not None:
            # What was found, so that the same is found again.
            made["subjects"] = subjects.recorded
        if self._inputs:
            made["inputs"] = self._inputs
        if valid.strength is not None:
            made["strength"] = float(valid.strength)
        if valid.image_guidance_scale is not None:
            made["image_guidance_scale"] = float(valid.image_guidance_scale)
        if valid.task is Task.REPAINT:
            made["repaint"] = dict(vars(valid.repaint))
        return made | engine_parameters(self._components)


def engine_parameters(components: Components) -> dict[str, Any]:
    """What the parameters of a result say about the engine."""
    path = components.directory.path
    derived = components.manifest.derived
    made = {} if derived is None else {"adapters": [asdict(adapter) for adapter in derived.adapters]}
    if derived is not None:
        path = Path(derived.base)
    return {
        "engine": path.name if path.parent == BUNDLED else str(path),
        **made,
        "model": components.manifest.model["name"],
        "weights": components.manifest.precision,
        "backend": components.backend.name,
        "precision": components.precision,
    }


def _timings(seconds: Mapping[str, float], samples: Samples) -> dict[str, Any]:
    """Seconds per stage. "scheduler" is the time of sampling outside the UNet."""
    return {
        "text_encoder": seconds["text_encoder"],
        "vae_encoder": seconds["vae_encoder"],
        "open": seconds["open"],
        "unet_steps": samples.seconds,
        "scheduler": seconds["sampling"] - sum(samples.seconds),
        "vae": seconds["vae"],
    }
