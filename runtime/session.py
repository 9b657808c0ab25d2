"""A session: generates images of one size, and inverts images."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Never, Self

import numpy as np

from ebca.runtime import memory
from ebca.runtime.components import Components
from ebca.runtime.conditioning.controlnets import Control
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.prompts import Conditioning, PromptEncoder
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.sizes import SizeConditions, SizePair
from ebca.runtime.conditioning.timeline import Guidance, Timeline
from ebca.runtime.execution.executor import Executor
from ebca.runtime.generation import Generation, Stopwatch
from ebca.runtime.images.inputs import ImageLike, load_images
from ebca.runtime.images.preview import Preview, preview_of
from ebca.runtime.images.regions import Region
from ebca.runtime.request import names
from ebca.runtime.request.fields import FIELD_PARTS, GenerateRequest
from ebca.runtime.request.validate import Target, check_inversion, checked_latents, validate
from ebca.runtime.results import Inverted, Result
from ebca.runtime.sampling.graph import GraphSampler
from ebca.runtime.sampling.host import HostSampler
from ebca.runtime.sampling.inversion import NoiseRegularization
from ebca.runtime.sampling.progress import OnStep
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.sampling.sampler import SamplerInputs
from ebca.runtime.sampling.table_stepper import TableStepper
from ebca.runtime.sampling.tables import INVERSE, load_table
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import callback, each_image, flag, whole

# Each combination of guidance on or off and numbers of editing prompts and subjects needs its own buffers; the oldest
# are replaced.
_KEPT_EXECUTORS = 2
_INVERT = (
    *("image", "prompt", "steps", "regularize", "prompt_embeds"),
    *("prompt_weighting", "long_prompts", "clip_skip", "on_step", "prompt_2", "pooled_prompt_embeds"),
    *("original_size", "crops_coords_top_left", "target_size", "vae_tiling"),
)


class Session:
    """Generates images of one size. A context manager.

    Owns its buffers, so it makes one call at a time: a second one, from another thread or from `on_step`, is refused.

    Args:
        components: the opened engine, which must outlive the session.
        height, width: image size in pixels, multiples of 8. None: the size that the model was trained at.
        batch: number of images per call.

    Attributes:
        engine: the opened engine.
        height, width: image size in pixels.
        batch: number of images per call.

    Raises:
        ParameterError: a size that is not supported, or an engine that is closed.
        OutOfMemoryError: the images need more memory than there is.
    """

    def __init__(
        self,
        components: Components,
        *,
        height: int | None = rules.SESSION.height,
        width: int | None = rules.SESSION.width,
        batch: int = rules.SESSION.batch,
    ) -> None:
        components.check_open()
        manifest = components.manifest
        self.engine = components
        self._downscale = manifest.vae.downscale if manifest.vae else rules.DEFAULT_DOWNSCALE
        native = manifest.unet.sample_size * self._downscale
        self.height = self._side("height", native if height is None else height)
        self.width = self._side("width", native if width is None else width)
        self.batch = whole("batch", batch)
        memory.check_size(self.height, self.width)
        memory.check_batch(self.batch)
        # What any call needs; calls check the rest.
        memory.check_evaluation(components, self._sizes(self.batch, 1, 1), self._described())
        self._executors: dict[tuple[int, ...], Executor] = {}
        self._samplers: dict[Executor, GraphSampler] = {}
        self._preview: Preview | None = None
        self._closed = False
        self._calling = threading.Lock()

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = rules.GENERATE.negative_prompt,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        steps: int | None = rules.GENERATE.steps,
        guidance_scale: float | None = rules.GENERATE.guidance_scale,
        scheduler: str | None = rules.GENERATE.scheduler,
        seed: int | Sequence[int] | None = rules.GENERATE.seed,
        gamma_attn: Gamma = rules.GENERATE.gamma_attn,
        gamma_norm: Gamma = rules.GENERATE.gamma_norm,
        token_weights: Mapping[str | int, float] | None = None,
        prompt_weighting: bool = rules.GENERATE.prompt_weighting,
        long_prompts: bool = rules.GENERATE.long_prompts,
        clip_skip: int | None = rules.GENERATE.clip_skip,
        norm_factor: float = rules.GENERATE.norm_factor,
        edits: Sequence[Edit] = (),
        reset_edits: bool = rules.GENERATE.reset_edits,
        subjects: Literal["auto"] | Sequence[str] | Sequence[Sequence[str]] | None = None,
        regions: Mapping[str, Region] | None = None,
        subject_exclusion: Gamma = rules.GENERATE.subject_exclusion,
        subject_balance: Gamma = rules.GENERATE.subject_balance,
        subject_window: float = rules.GENERATE.subject_window,
        image: ImageLike | Sequence[ImageLike] | None = None,
        mask: ImageLike | Sequence[ImageLike] | None = None,
        strength: float | None = rules.GENERATE.strength,
        image_guidance_scale: float | None = None,
        repaint: RePaint | None = None,
        composite: bool = rules.GENERATE.composite,
        control: Control | Sequence[Control] = (),
        prompt_embeds: np.ndarray | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        pooled_prompt_embeds: np.ndarray | None = None,
        negative_pooled_prompt_embeds: np.ndarray | None = None,
        original_size: SizePair | None = None,
        crops_coords_top_left: SizePair | None = None,
        target_size: SizePair | None = None,
        negative_original_size: SizePair | None = None,
        negative_crops_coords_top_left: SizePair | None = None,
        negative_target_size: SizePair | None = None,
        latents: np.ndarray | None = None,
        energies: bool = False,
        attention_maps: bool = False,
        output: str = "pil",
        vae_tiling: bool = False,
        on_step: OnStep | None = None,
        **unknown: Never,
    ) -> Result:
        """Generate images with energy-based cross attention.

        Without `image` this is text to image. With `image` it is image to image, starting at the noise level that
        `strength` sets. With `image` and `mask` it is inpainting: by the model if it was trained for inpainting, else
        by RePaint. An InstructPix2Pix model changes `image` as the prompt says. `subjects` gives things of the prompt
        places of their own, and `control` steers by images through ControlNets. All parameters but `on_step` are fields
        of `ebca.GenerateRequest`, which describes them; `run` takes them as one value.

        Args:
            on_step: called after each evaluation; return False to cancel.

        Raises:
            ParameterError: a wrong value, values that do not go together, or a session that is closed or in another
                call. For a name that is not a parameter, the error is a TypeError too.
            EngineError: a task that this engine does not support.
            OutOfMemoryError: the images need more memory than there is, found before anything is computed.
            CancelledError: `on_step` returned False. The session stays usable.
            NumericalError: a result is not finite; the message names the segment.
        """
        if unknown:
            raise names.unknown(unknown, "Session.generate", [*FIELD_PARTS, "on_step"], names.FIELDS)
        given = {name: value for name, value in locals().items() if name in FIELD_PARTS}
        return self.run(GenerateRequest.of(**given), on_step)

    def run(self, request: GenerateRequest, on_step: OnStep | None = None) -> Result:
        """Generate images for a request. Raises the same errors as `generate`."""
        with self._call(on_step):
            return self._generation(request).run(self._executor, self._graph_sampler, on_step)

    def preview(self) -> Preview:
        """What shows latents as images while they are sampled: the engine's small decoder if it has one, else rough
        colours.

            show = session.preview()
            session.generate("a cat", on_step=lambda info: show(info.unit_latents)[0].save("preview.png"))

        Raises:
            EngineError: there is no VAE.
            ParameterError: a session that is closed or in a call.
        """
        with self._call(None):
            if self._preview is None:
                self._preview = preview_of(self.engine, (self.height, self.width))
            return self._preview

    def check(self, request: GenerateRequest) -> Mapping[str, Any]:
        """Check a request completely before anything is computed, as for a queue of many.

        Returns:
            `Result.parameters` as `run` would return them. Without a seed in the request they have a random one.

        Raises:
            ParameterError, EngineError: as in `generate`.
        """
        with self._call(None):
            return self._generation(request).check()

    def invert(
        self,
        image: ImageLike | Sequence[ImageLike] | np.ndarray,
        prompt: str | Sequence[str] | None = None,
        *,
        steps: int = rules.INVERT.steps,
        regularize: bool | NoiseRegularization = False,
        prompt_embeds: np.ndarray | None = None,
        prompt_weighting: bool = rules.INVERT.prompt_weighting,
        long_prompts: bool = rules.INVERT.long_prompts,
        clip_skip: int | None = rules.INVERT.clip_skip,
        prompt_2: str | Sequence[str] | None = None,
        pooled_prompt_embeds: np.ndarray | None = None,
        original_size: SizePair | None = None,
        crops_coords_top_left: SizePair | None = None,
        target_size: SizePair | None = None,
        vae_tiling: bool = False,
        on_step: OnStep | None = None,
        **unknown: Never,
    ) -> Inverted:
        """Find the noise that an image comes from (DDIM inversion without guidance or context update).

        `generate(..., latents=found.latents, scheduler="ddim", steps=steps)` with the same prompt and little or no
        guidance reproduces the image. With editing prompts it edits the image.

        Args:
            image: one image for all, one per image of the batch, or their clean latents [n,C,h,w] (scaled).
            prompt: what the image shows.
            steps: scheduler steps. As in the authors' code, this takes steps - 1 evaluations.
            regularize: keep the noise predictions close to standard normal, see `NoiseRegularization`. True: with its
                defaults.
            prompt_embeds: [n,T,D] float32 instead of the prompt.
            prompt_weighting, long_prompts, clip_skip: how the prompt is read, as in `generate`.
            prompt_2, pooled_prompt_embeds, original_size, crops_coords_top_left, target_size: of Stable Diffusion XL,
                as in `generate`.
            vae_tiling: encode an image that is larger than the model's size in tiles.
            on_step: called after each evaluation; return False to cancel.

        Raises:
            ParameterError, EngineError, CancelledError, NumericalError: as in `generate`.
        """
        if unknown:
            raise names.unknown(unknown, "Session.invert", _INVERT, names.INVERT_FIELDS)
        conditioning = Conditioning(
            prompt,
            prompt_embeds=prompt_embeds,
            prompt_weighting=prompt_weighting,
            long_prompts=long_prompts,
            clip_skip=clip_skip or 0,
            prompt_2=prompt_2,
            pooled_prompt_embeds=pooled_prompt_embeds,
        )
        sizes = SizeConditions(original_size, crops_coords_top_left, target_size)
        with self._call(on_step):
            tiled = flag("vae_tiling", vae_tiling)
            return self._invert(image, conditioning, sizes, steps, regularize, tiled, on_step)

    def _generation(self, request: GenerateRequest) -> Generation:
        target = Target(self.engine.manifest, self._latent_shape)
        valid = validate(request, target)
        memory.check_generation(self.engine, valid, target.latent_shape, (self.height, self.width))
        return Generation(self.engine, valid, target, (self.height, self.width), self._downscale)

    def _invert(
        self,
        image: ImageLike | Sequence[ImageLike] | np.ndarray,
        conditioning: Conditioning,
        sizes: SizeConditions,
        steps: int,
        regularize: bool | NoiseRegularization,
        tiled: bool,
        on_step: OnStep | None,
    ) -> Inverted:
        manifest = self.engine.manifest
        if not isinstance(regularize, NoiseRegularization):
            regularize = regularize is not None and flag("regularize", regularize)
        check_inversion(conditioning, sizes, manifest, regularize=bool(regularize))
        tokens = PromptEncoder(self.engine, self.batch).tokens(conditioning, guided=False)
        memory.check_evaluation(self.engine, self._sizes(self.batch, 1, tokens), self._described())
        self.engine.verify_tables()
        table = load_table(self.engine.directory.path, manifest.schedulers, INVERSE, steps)
        adjust = None
        if regularize:
            chosen = regularize if isinstance(regularize, NoiseRegularization) else NoiseRegularization()
            adjust = chosen.start(self.batch)
        watch = Stopwatch()
        clean = self._clean_latents(image, tiled=tiled)
        watch.stage("vae_encoder")
        prompts = PromptEncoder(self.engine, self.batch).encode(conditioning, guided=False)
        watch.stage("text_encoder")
        executor = self._executor(prompts.conditions(sizes, (self.height, self.width)))
        timeline = Timeline.of(Guidance(), steps, table.evaluations, table.name)
        controls = timeline.controls(prompts, manifest.unet.layers, executor.sizes)
        inputs = SamplerInputs(TableStepper(table, self._latent_shape, adjust), clean, controls)
        sampler = HostSampler(executor)
        sampler.prepare(inputs)
        found = sampler.run(inputs, on_step)
        return Inverted(found.latents, {**watch.seconds, "unet_steps": found.seconds})

    def close(self) -> None:
        """Free the buffers. Closing twice is fine."""
        self._samplers.clear()
        self._executors.clear()
        self._closed = True

    def __repr__(self) -> str:
        count = "1 image" if self.batch == 1 else f"{self.batch} images"
        closed = ", closed" if self._closed else ""
        model = self.engine.manifest.model["name"]
        return f"<ebca.Session of '{model}': {count} of {self.width}x{self.height}{closed}>"

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

    def _side(self, name: str, value: int) -> int:
        side, multiple = whole(name, value), self._downscale
        if side < multiple or side % multiple:
            low = max(side // multiple, 1) * multiple
            raise rules.SIDE_NOT_MULTIPLE.error(field=name, value=side, multiple=multiple, low=low, high=low + multiple)
        return side

    @contextmanager
    def _call(self, on_step: OnStep | None) -> Iterator[None]:
        """One call at a time: calls share the session's buffers, so a second one would change the images of both."""
        if not self._calling.acquire(blocking=False):
            raise rules.SESSION_BUSY.error()
        try:
            if self._closed:
                raise rules.SESSION_CLOSED.error()
            self.engine.check_open()
            callback("on_step", on_step)
            with memory.described_shortage(self._described()):
                yield
        finally:
            self._calling.release()

    def _graph_sampler(self, executor: Executor) -> GraphSampler | None:
        """A sampler that runs on the device without the host; None if the device has none."""
        graphs = self.engine.device.graphs
        if graphs is None:
            return None
        if executor not in self._samplers:
            self._samplers[executor] = GraphSampler(executor, graphs, self.batch)
        return self._samplers[executor]

    def _executor(self, conditions: Mapping[str, np.ndarray], groups: int = 0) -> Executor:
        """An executor of matching sizes, with `Prompts.conditions` copied in."""
        rows, count, tokens, _ = conditions["contexts"].shape
        key = (rows, count, tokens, groups)
        if key not in self._executors:
            while len(self._executors) >= _KEPT_EXECUTORS:
                self._samplers.pop(self._executors.pop(next(iter(self._executors))), None)
            self._executors[key] = self.engine.executor(self._sizes(rows, count, tokens), groups)
        executor = self._executors[key]
        executor.set_conditions(conditions)
        executor.residuals.load(())
        return executor

    def _sizes(self, rows: int, contexts: int, tokens: int) -> dict[str, int]:
        """Sizes of an evaluation."""
        _, _, height, width = self._latent_shape
        return {"batch": rows, "contexts": contexts, "tokens": tokens, "height": height, "width": width}

    def _described(self) -> str:
        """The images of a call, for messages."""
        return memory.described(self.batch, (self.height, self.width))

    def _clean_latents(self, image: ImageLike | Sequence[ImageLike] | np.ndarray, *, tiled: bool) -> np.ndarray:
        """Clean latents [n,C,h,w] of images; latents are returned as given."""
        if isinstance(image, np.ndarray) and self._look_like_latents(image):
            return checked_latents(image, self._latent_shape)
        loaded = each_image("images", load_images(image, self.height, self.width), self.batch)
        return self.engine.encode_image(loaded, tiled=tiled)[0]

    def _look_like_latents(self, array: np.ndarray) -> bool:
        """Whether an array is latents [n,C,h,w] rather than images [n,H,W,3].

        Latents of a wrong size count too, so that the error is about latents.
        """
        channels = self._latent_shape[1]
        this_size = array.shape[1:] == self._latent_shape[1:]
        return this_size or (array.ndim == 4 and array.shape[1] == channels and array.shape[3] not in (1, 3, 4))
