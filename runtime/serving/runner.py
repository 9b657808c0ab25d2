"""Makes images with an engine in this process."""

import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ebca.errors import CancelledError, EbcaError, ParameterError
from ebca.runtime.components import Components
from ebca.runtime.conditioning.prompts import PromptEncoder
from ebca.runtime.engine import Engine
from ebca.runtime.generation import engine_parameters
from ebca.runtime.images.files import png_bytes
from ebca.runtime.images.outputs import sheet
from ebca.runtime.images.preview import Preview
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.inputs import chosen_count
from ebca.runtime.request.serialization import from_json, to_json
from ebca.runtime.request.validate import Task
from ebca.runtime.results import Result
from ebca.runtime.sampling import tables
from ebca.runtime.sampling.progress import OnStep, StepInfo
from ebca.runtime.schema import parameters as rules
from ebca.runtime.serving import telemetry
from ebca.runtime.serving.batches import alike, together
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.uploads import embedded
from ebca.runtime.serving.work import Asked, Made, OnProgress, Progress, Work
from ebca.runtime.session import Session

_Size = tuple[int, int, int]


class EngineRunner:
    """A `Runner` of one engine, which the caller opens and closes.

    Args:
        engine: the opened engine; runners may share it.
        limits: of requests.
        max_batch: works that may be run together. With 1, nothing looks for what they have in common.
    """

    def __init__(self, engine: Engine, limits: Limits, max_batch: int = 1) -> None:
        self._engine = engine
        self._limits = limits
        self._max_batch = max_batch
        # Sessions that stay open: two, and one for each larger batch. The oldest are closed.
        self._kept = 1 + max_batch.bit_length()
        self._sessions: OrderedDict[_Size, Session] = OrderedDict()

    def describe(self) -> Mapping[str, Any]:
        """The model: its name, the default size, steps, scheduler and guidance, its schedulers and tasks, and whether
        texts can differ for its second text encoder."""
        manifest = self._engine.manifest
        unet, vae, section, texts = manifest.unet, manifest.vae, manifest.schedulers, manifest.text_encoder
        side = unet.sample_size * (vae.downscale if vae else rules.DEFAULT_DOWNSCALE)
        extra = unet.in_channels - unet.out_channels
        inpaints = extra == unet.out_channels + 1
        start = [] if inpaints else [Task.INSTRUCTION if extra else Task.IMAGE_TO_IMAGE]
        tasks = [Task.INPAINTING] if inpaints else [Task.TEXT_TO_IMAGE, *start, *([] if extra else [Task.REPAINT])]
        return {
            **engine_parameters(self._engine),
            "height": side,
            "width": side,
            "multiple": vae.downscale if vae else rules.DEFAULT_DOWNSCALE,
            "steps": tables.default_steps(section),
            "guidance_scale": manifest.guidance_scale,
            "scheduler": str(section["default"]),
            "schedulers": [one for one in tables.available_schedulers(section) if one != tables.INVERSE],
            "tasks": [task.value for task in tasks],
            "device": self._engine.device_choice.device,
            "second_prompt": texts is not None and texts.pooled_size is not None,
        }

    def prepare(self, asked: Asked) -> tuple[Work, Mapping[str, Any]]:
        """See `Runner.prepare`."""
        try:
            return self._prepare(asked)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, ParameterError):
                raise
            # Values that no rule names, such as a number of a thousand digits.
            problem = f"the request has a value that cannot be used: {error}"[:300]
            raise ParameterError(problem, "correct it") from error

    def _prepare(self, asked: Asked) -> tuple[Work, Mapping[str, Any]]:
        request = from_json(embedded(asked.request, self._limits))
        if request.output != "pil":
            raise ParameterError(f"output is {request.output!r}", "leave it out: a service returns image files")
        self._limits.check(request)
        if request.seed is None:
            # Drawn here, so that the parameters are known before the images are, and a repetition makes the same.
            request = replace(request, seed=secrets.randbits(32))
        count = chosen_count(request, asked.num_images)
        height, width = asked.height, asked.width
        if height is None and width is None:
            height, width = self._engine.fitting(request)
        with self._engine.session(height, width, count) as session:
            self._limits.check_size(session.height, session.width, count)
            parameters = session.check(request)
            size = session.height, session.width
        alone = self._max_batch == 1 or count > 1 or asked.previews
        group = None if alone else alike(request, self._tokens(request), *size)
        return Work(to_json(request), *size, count, asked.previews, group), parameters

    def _tokens(self, request: GenerateRequest) -> int:
        return PromptEncoder(self._engine, 1).tokens(request.conditioning, guided=True)

    def run(self, work: Work, on_progress: OnProgress) -> Made:
        """See `Runner.run`."""
        size = work.height, work.width, work.count
        show = self._session(size).preview() if work.previews else None

        def on_step(info: StepInfo) -> bool:
            return on_progress(Progress(info.index + 1, info.total, _preview(show, work.previews, info)))

        result = self._result(size, work.request, on_step)
        if not on_progress(Progress(len(result.timesteps), len(result.timesteps))):
            raise CancelledError("the run was cancelled while its images were decoded")
        return made_of(result, self._engine)

    def run_together(self, works: Sequence[Work], on_progress: Sequence[OnProgress]) -> Sequence[Made | None]:
        """See `BatchRunner.run_together`."""
        first, stopped = works[0], set[int]()

        def tell(progress: Progress) -> bool:
            stopped.update(n for n, goes_on in enumerate(on_progress) if not goes_on(progress))
            return len(stopped) < len(works)

        size = first.height, first.width, len(works)
        try:
            result = self._result(size, together(works), lambda info: tell(Progress(info.index + 1, info.total)))
        except CancelledError:
            return [None] * len(works)
        tell(Progress(len(result.timesteps), len(result.timesteps)))
        return [None if index in stopped else self._one_of(result, index, work) for index, work in enumerate(works)]

    def _one_of(self, result: Result, index: int, work: Work) -> Made:
        """An image of a batch, with the parameters that make it alone."""
        with self._engine.session(work.height, work.width) as session:
            parameters = session.check(from_json(work.request))
        file = png_bytes(result.images[index], {**parameters, "image_index": 0})
        return Made((file,), parameters, result.timings)

    def close(self) -> None:
        """Close the sessions."""
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _result(self, size: _Size, request: Mapping[str, Any], on_step: OnStep) -> Result:
        session = self._session(size)
        try:
            return session.run(from_json(request), on_step)
        except EbcaError:
            raise
        except BaseException:
            # Of an error nobody has thought of, nobody knows what it leaves in the buffers.
            self.close()
            raise

    def _session(self, size: _Size) -> Session:
        if size not in self._sessions:
            while len(self._sessions) >= self._kept:
                self._sessions.popitem(last=False)[1].close()
            self._sessions[size] = self._engine.session(*size)
        self._sessions.move_to_end(size)
        return self._sessions[size]


def made_of(result: Result, engine: Components) -> Made:
    """A result as plain values. Its files are those of ebca-run."""
    images = [
        png_bytes(image, {**result.parameters, "image_index": index}) for index, image in enumerate(result.images)
    ]
    return Made(
        tuple(images),
        result.parameters,
        result.timings,
        telemetry.energies(result, engine),
        telemetry.attention(result, engine),
    )


def _preview(show: Preview | None, each: int, info: StepInfo) -> bytes | None:
    if show is None or (info.index + 1) % each:
        return None
    # A preview is no reason to lose the images.
    with contextlib.suppress(ArithmeticError, ValueError):
        return png_bytes(sheet(show(info.unit_latents)))
    return None
