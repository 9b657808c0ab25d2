"""From prompts and pictures to pictures of one size."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ebca.errors import EngineError, NumericalError, ParameterError
from ebca.runtime.components import Components
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.prompts import PromptEncoder
from ebca.runtime.conditioning.schedules import Gamma, describe
from ebca.runtime.conditioning.timeline import Timeline
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.execution.executor import Executor
from ebca.runtime.images import latents as tasks
from ebca.runtime.images import outputs as pictures
from ebca.runtime.images.inputs import Picture, load_pictures
from ebca.runtime.images.latents import RePaint, Task
from ebca.runtime.noise import NormalStream
from ebca.runtime.sampling.graph import Loop
from ebca.runtime.sampling.host import NoisePredictor, OnStep, sample
from ebca.runtime.sampling.inversion import NoiseRegularization
from ebca.runtime.sampling.repaint import RePaintPlan
from ebca.runtime.sampling.repaint import repaint as run_repaint
from ebca.runtime.sampling.tables import SchedulerTable, available_schedulers, load_table, normalise_name
from ebca.runtime.telemetry.attention_maps import AttentionMaps
from ebca.runtime.validation import as_numbers, finite, whole

# Pixels per latent where there is no VAE to ask.
_DOWNSCALE = 8

# Goes from pictures to noise.
_INVERSE = "ddim_inverse"

# Buffers for more kinds of calls (with and without guidance, numbers of editing prompts) are made anew.
_KEPT_EXECUTORS = 2


@dataclass(frozen=True)
class Result:
    """What `generate` made.

    images: list of PIL images, float32 array [n,H,W,3] in [0, 1], or None for output="latents".
    latents: [n,C,h,w] float32, scaled as the UNet sees them.
    energies: [evaluations,L,2,B,S] (attention, norm) or None; see `ebca.runtime.telemetry.energies.Energies`.
    attention_maps: [n,T,h,w] float32 or None; see `ebca.runtime.telemetry.attention_maps.AttentionMaps`.
    timesteps: of the evaluations.
    timings: seconds per stage; "unet_steps" is a list.
    parameters: everything needed to make the same pictures again (but for pictures that were passed in).
    """

    images: Any
    latents: np.ndarray
    energies: np.ndarray | None
    attention_maps: np.ndarray | None
    timesteps: tuple[float, ...]
    timings: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Inverted:
    """What `invert` found: latents [n,C,h,w] float32 from which DDIM sampling comes back to the picture.

    timings: seconds per stage; "unet_steps" is a list.
    """

    latents: np.ndarray
    timings: Mapping[str, Any]


class Session:
    """Makes pictures of one size. Owns its buffers; use from one thread at a time, one session per thread.

    Args:
        engine: the opened engine, which must outlive the session.
        height, width: picture size in pixels, multiples of 8; None: the size the model was trained at.
        batch: number of pictures per call.

    Raises:
        ParameterError: a size that the engine cannot make.
    """

    def __init__(
        self, engine: Components, *, height: int | None = None, width: int | None = None, batch: int = 1
    ) -> None:
        manifest = engine.manifest
        self.engine = engine
        self._downscale = manifest.vae.downscale if manifest.vae else _DOWNSCALE
        native = manifest.unet.sample_size * self._downscale
        self.height = native if height is None else whole("height", height)
        self.width = native if width is None else whole("width", width)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < self._downscale or value % self._downscale:
                low = max(value // self._downscale, 1) * self._downscale
                raise ParameterError(
                    f"{name} is {value}", f"give a multiple of {self._downscale}, e.g. {low} or {low + self._downscale}"
                )
        self.batch = whole("batch", batch)
        if self.batch < 1:
            raise ParameterError(f"batch is {batch}", "give 1 or more pictures")
        self._executors: dict[tuple[int, ...], Executor] = {}
        self._loops: dict[Executor, Loop] = {}
        self._closed = False

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        steps: int = 50,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        seed: int | Sequence[int] | None = None,
        gamma_attn: Gamma = 0.0,
        gamma_norm: Gamma = 0.0,
        token_weights: Mapping[str | int, float] | None = None,
        norm_factor: float = 1.0,
        edits: Sequence[Edit] = (),
        reset_edits: bool = False,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        repaint: RePaint | None = None,
        composite: bool = True,
        prompt_embeds: np.ndarray | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        latents: np.ndarray | None = None,
        energies: bool = False,
        attention_maps: bool = False,
        on_step: OnStep | None = None,
        output: str = "pil",
    ) -> Result:
        """Make pictures with energy-based cross attention.

        Without `image`: text to image. With `image`: image to image from a noise level that `strength` sets. With
        `mask` too: inpainting, by the model itself where it was trained for that, by RePaint otherwise.

        Args:
            prompt: one text for all pictures of the session's batch, or one per picture.
            negative_prompt: the same for the unconditional half.
            steps: scheduler steps.
            guidance_scale: of classifier-free guidance; 1 or less evaluates the conditional half only; None: the
                engine's default, 7.5 for Stable Diffusion.
            scheduler: "pndm", "ddim", "euler", "dpmpp_2m", "unipc"; None: the engine's default, but "ddim" for image
                to image with strength below 1, which a multistep scheduler cannot start on the way.
            seed: start latents as torch.randn on the CPU makes them; a sequence has one per picture. None: random.
            gamma_attn, gamma_norm: step sizes of the context update: a number, a Schedule, or one value per
                evaluation of the scheduler (RePaint: per step).
            token_weights: token position or word of the prompt -> factor of gamma_attn on the conditional rows.
            norm_factor: 1 as in the authors' code, 0.5 as in the paper.
            edits: editing prompts, added to the main prompt or taken away from it.
            reset_edits: start every evaluation from the embeddings of the editing prompts; by default their contexts
                go on from evaluation to evaluation, as in the authors' code.
            image: one for all pictures or one each, resized to the session's size.
            mask: white where the picture is made anew; one for all pictures or one each.
            strength: of image to image, above 0 to 1 (default 0.8): the share of the steps that is run.
            repaint: settings of RePaint.
            composite: put the pixels of `image` back outside the mask.
            prompt_embeds, negative_prompt_embeds: [n,T,D] float32 instead of texts.
            latents: start noise [n,C,h,w] of unit variance instead of a seed, or what `invert` found.
            energies: record the energies of every step and layer.
            attention_maps: record the mean attention to each token.
            on_step: called after each evaluation; False cancels.
            output: "pil", "np" ([n,H,W,3] float32 in [0, 1]), or "latents".

        Raises:
            ParameterError: a value that does not fit; nothing has been computed then.
            EngineError: a task that this engine is not made for.
            CancelledError: `on_step` returned False. The session stays usable.
            NumericalError: a result is not finite; the message names the segment.
        """
        self._check_open()
        self._check_output(output)
        task = tasks.infer(self.engine.manifest, image, mask, strength, repaint)
        settings = repaint or RePaint()
        guidance_scale = finite(
            "guidance_scale", self.engine.manifest.guidance_scale if guidance_scale is None else guidance_scale
        )
        guided = guidance_scale > 1
        table: SchedulerTable | None = None
        plan: RePaintPlan | None = None
        if task is Task.REPAINT:
            plan = self._repaint_plan(scheduler, steps, settings)
            shape = (plan.steps, plan.steps, "RePaint")
        else:
            table = self._table(task, scheduler, steps, strength)
            shape = (table.remaining, table.evaluations, table.name)
        edits = self._checked_edits(edits)
        timeline = Timeline.plan(gamma_attn, gamma_norm, edits, *shape)
        token_weights = token_weights or {}
        source = tasks.load_source(self.batch, self.height, self.width, self._downscale, image, mask)
        streams, seeds = self._streams(seed, used=latents is None or source is not None)
        given = None if latents is None else self._as_latents("latents", latents)

        began = time.perf_counter()
        prompts = PromptEncoder(self.engine, self.batch).encode(
            prompt,
            "" if negative_prompt is None else negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            token_weights,
            guided,
            edits,
        )
        encoded = time.perf_counter()
        seen = tasks.prepare(self.engine, task, source, streams, self._latent_shape, given, table)
        known = time.perf_counter()
        executor = self._executor(prompts.contexts)
        controls = timeline.controls(
            prompts,
            self.engine.manifest.unet.layers,
            executor.sizes,
            token_weights=token_weights,
            norm_factor=norm_factor,
            mask=tasks.update_mask(source, task, settings),
        )
        # What looks between the steps, or draws noise there, needs the host.
        loop = None if energies or attention_maps or plan else self._loop(executor)
        variants = {"energies"} if energies else {control.variant for control in controls}
        if loop is None:
            for variant in variants:
                executor.record(variant)
        else:
            assert table is not None
            loop.start(
                table,
                seen.start,
                controls,
                guidance_scale=guidance_scale if guided else None,
                known=seen.channels,
                carry=bool(edits) and not reset_edits,
            )
        opened = time.perf_counter()
        maps = AttentionMaps(self.engine.manifest.unet, executor.sizes, self.batch) if attention_maps else None
        predictor = NoisePredictor(
            executor,
            guidance_scale=guidance_scale if guided else None,
            known=seen.channels,
            reset_edits=reset_edits,
            energies=energies,
            probe=maps,
        )
        if plan is not None:
            assert source is not None and source.hole is not None and seen.known is not None
            made = run_repaint(
                predictor,
                plan,
                seen.start,
                seen.known,
                source.hole,
                controls,
                streams,
                eta=settings.eta,
                on_step=on_step,
            )
        elif loop is not None:
            assert table is not None
            made, predictor.seconds[:] = loop.sample(controls, table.timesteps.tolist(), on_step)
            predictor.timesteps[:] = table.timesteps.tolist()
        else:
            assert table is not None
            made = sample(predictor, table, seen.start, controls, on_step=on_step)
        sampled = time.perf_counter()
        images = None if output == "latents" else self._decode(made, output, source if composite else None)
        self.engine.flush_caches()
        timings = {
            "text_encoder": encoded - began,
            "vae_encoder": known - encoded,
            "open": opened - known,
            "unet_steps": predictor.seconds,
            "scheduler": sampled - opened - sum(predictor.seconds),
            "vae": time.perf_counter() - sampled,
        }
        parameters = {
            "task": task.value,
            "prompt": _texts(prompt),
            "negative_prompt": _texts(negative_prompt),
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scheduler": shape[2],
            "seed": seeds,
            "height": self.height,
            "width": self.width,
            "gamma_attn": describe(gamma_attn),
            "gamma_norm": describe(gamma_norm),
            # Pairs: as the keys of a JSON object, positions would become words.
            "token_weights": [[k if isinstance(k, str) else int(k), float(f)] for k, f in token_weights.items()],
            "norm_factor": float(norm_factor),
            "edits": [edit.describe() for edit in edits],
            "reset_edits": bool(reset_edits),
            **tasks.describe(task, strength, settings),
            "model": self.engine.manifest.model["name"],
            "weights": self.engine.manifest.precision,
            "backend": self.engine.backend.name,
            "precision": self.engine.precision,
        }
        return Result(
            images,
            made,
            predictor.energies,
            None if maps is None else maps.maps,
            tuple(predictor.timesteps),
            timings,
            parameters,
        )

    def invert(
        self,
        image: Picture | Sequence[Picture] | np.ndarray,
        prompt: str | Sequence[str] | None = None,
        *,
        steps: int = 50,
        regularize: bool | NoiseRegularization = False,
        prompt_embeds: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> Inverted:
        """Find the noise a picture comes from (DDIM inversion, no guidance, no context update).

        `generate(..., latents=found.latents, scheduler="ddim", steps=steps)` with the same prompt and little or no
        guidance comes back to the picture; with edits it becomes real-image editing.

        Args:
            image: pictures (one for all or one each), or their latents [n,C,h,w] as the UNet sees them.
            prompt: what the picture shows.
            steps: of the scheduler; one evaluation less is run, as by the authors.
            regularize: keep the predicted noise like noise (see `NoiseRegularization`); True: with its defaults.
            prompt_embeds: [n,T,D] float32 instead of the prompt.
            on_step: called after each evaluation; False cancels.

        Raises:
            ParameterError, EngineError, CancelledError, NumericalError: as in `generate`.
        """
        self._check_open()
        unet = self.engine.manifest.unet
        if unet.in_channels != unet.out_channels:
            raise EngineError("this engine is an inpainting model", "inversion needs one that takes the latents alone")
        table = load_table(*self._tables, _INVERSE, steps)
        adjust = None
        if regularize:
            tasks.require_noise_prediction(self.engine.manifest, "regularize")
            chosen = regularize if isinstance(regularize, NoiseRegularization) else NoiseRegularization()
            adjust = chosen.start(self.batch)
        began = time.perf_counter()
        if isinstance(image, np.ndarray) and self._look_like_latents(image):
            clean = self._as_latents("latents", image)
        else:
            loaded = tasks.per_picture("image", load_pictures(image, self.height, self.width), self.batch)
            clean = self.engine.encode_image(loaded)[0]
        known = time.perf_counter()
        prompts = PromptEncoder(self.engine, self.batch).encode(prompt, "", prompt_embeds, None, {}, guided=False)
        encoded = time.perf_counter()
        executor = self._executor(prompts.contexts)
        timeline = Timeline.plan(0.0, 0.0, (), steps, table.evaluations, table.name)
        controls = timeline.controls(prompts, unet.layers, executor.sizes, token_weights={}, norm_factor=1.0, mask=None)
        predictor = NoisePredictor(executor, guidance_scale=None)
        found = sample(predictor, table, clean, controls, adjust=adjust, on_step=on_step)
        timings = {"vae_encoder": known - began, "text_encoder": encoded - known, "unet_steps": predictor.seconds}
        return Inverted(found, timings)

    def close(self) -> None:
        """Give the buffers back. Closing twice is fine."""
        self._loops.clear()
        self._executors.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _latent_shape(self) -> tuple[int, int, int, int]:
        channels = self.engine.manifest.unet.out_channels
        return (self.batch, channels, self.height // self._downscale, self.width // self._downscale)

    @property
    def _tables(self) -> tuple[Any, Mapping[str, Any]]:
        self.engine.verify_tables()
        return self.engine.directory.path, self.engine.manifest.schedulers

    def _check_open(self) -> None:
        if self._closed:
            raise ParameterError("this session is closed", "open another with engine.session()")

    def _check_output(self, output: str) -> None:
        if output not in ("pil", "np", "latents"):
            raise ParameterError(f"output is '{output}'", "choose 'pil', 'np' or 'latents'")
        if output != "latents" and self.engine.manifest.vae is None:
            raise EngineError("this engine directory has no VAE", "ask for output='latents'")

    def _checked_edits(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        if isinstance(edits, Edit):
            raise ParameterError("edits is one Edit", "give a list of them")
        listed = tuple(edits)
        limit = self.engine.manifest.unet.max_contexts
        if limit is not None and len(listed) > limit - 1:
            raise ParameterError(
                f"{len(listed)} editing prompts are more than the {limit - 1} that this engine was built for",
                "use fewer, or export it again for more",
            )
        return listed

    def _table(self, task: Task, scheduler: str | None, steps: int, strength: float | None) -> SchedulerTable:
        folder, section = self._tables
        choices = [n for n in available_schedulers(section) if n != _INVERSE]
        begin = tasks.begin(strength, steps) if task is Task.IMAGE_TO_IMAGE else 0
        if scheduler is None:
            scheduler = "ddim" if begin else str(section["default"])
        if not isinstance(scheduler, str) or normalise_name(scheduler) not in choices:
            raise ParameterError(f"scheduler {scheduler!r} is not in this engine", f"available: {', '.join(choices)}")
        table = load_table(folder, section, scheduler, steps)
        return table.after(begin) if task is Task.IMAGE_TO_IMAGE else table

    def _repaint_plan(self, scheduler: str | None, steps: int, settings: RePaint) -> RePaintPlan:
        if scheduler is not None:
            raise ParameterError(
                f"scheduler {scheduler!r} does not apply: RePaint has steps of its own", "leave it out"
            )
        self.engine.verify_tables()
        return tasks.repaint_plan(self.engine, settings, steps)

    def _decode(self, latents: np.ndarray, output: str, source: tasks.Source | None) -> Any:
        # The decoder's activations are the peak of a run; the UNet's weights need not lie beside them.
        self.engine.forget_weights()
        decoded = pictures.to_unit_range(self.engine.decode(latents))
        if not np.isfinite(decoded).all():
            raise NumericalError(
                "the picture is not finite, first in the VAE decoder", "lower the gammas, or check the checkpoint"
            )
        if source is not None and source.mask is not None:
            hole = source.mask.transpose(0, 2, 3, 1) > 0
            decoded = np.where(hole, decoded, source.pixels)
        return pictures.to_pil(decoded) if output == "pil" else decoded

    def _loop(self, executor: Executor) -> Loop | None:
        """The loop on the device, where the host is not the device itself."""
        if not isinstance(self.engine.device, CudaDevice):
            return None
        if executor not in self._loops:
            self._loops[executor] = Loop(executor, self.engine.device, self.batch)
        return self._loops[executor]

    def _executor(self, contexts: np.ndarray) -> Executor:
        """Buffers for contexts [B,S,T,D], which are copied in."""
        rows, count, tokens, _ = contexts.shape
        key = (rows, count, tokens)
        if key not in self._executors:
            while len(self._executors) >= _KEPT_EXECUTORS:
                self._loops.pop(self._executors.pop(next(iter(self._executors))), None)
            _, _, height, width = self._latent_shape
            sizes = {"batch": rows, "contexts": count, "tokens": tokens, "height": height, "width": width}
            self._executors[key] = self.engine.executor(sizes)
        self._executors[key].contexts[...] = contexts
        return self._executors[key]

    def _streams(
        self, seed: int | Sequence[int] | None, used: bool
    ) -> tuple[list[NormalStream], int | list[int] | None]:
        """Random numbers, one stream for all pictures or one each; and the seeds, None for a random one not used."""
        if seed is None:
            drawn = secrets.randbits(32)
            return [NormalStream(drawn)], drawn if used else None
        if np.ndim(seed) == 0:
            seed = whole("seed", seed)
            return [NormalStream(seed)], seed
        seeds = [whole("seed", s) for s in np.asarray(seed, dtype=object).tolist()]
        if len(seeds) != self.batch:
            raise ParameterError(
                f"seed has {len(seeds)} values for {self.batch} pictures", "give one number or one each"
            )
        return [NormalStream(s) for s in seeds], seeds

    def _look_like_latents(self, array: np.ndarray) -> bool:
        """[n,C,h,w] rather than pictures [n,H,W,3]; of another size too, so that the refusal speaks of latents."""
        channels = self._latent_shape[1]
        this_size = array.shape[1:] == self._latent_shape[1:]
        return this_size or (array.ndim == 4 and array.shape[1] == channels and array.shape[3] not in (1, 3, 4))

    def _as_latents(self, name: str, value: np.ndarray) -> np.ndarray:
        shape = self._latent_shape
        array = as_numbers(name, value, f"an array {list(shape)}")
        if array.shape != shape:
            raise ParameterError(f"{name} have shape {list(array.shape)}, this session needs {list(shape)}")
        if not np.isfinite(array).all():
            raise ParameterError(f"{name} have values that are not finite")
        return array


def _texts(value: str | Sequence[str] | None) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else list(map(str, value))
