"""An opened engine directory, shared by sessions and threads."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

from ebca.engines.adapters.asked import EmbeddingArgument, LoraArgument, merged
from ebca.engines.backends.protocol import Backend, BackendOptions
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.runtime.components import Components
from ebca.runtime.devices import registry as devices
from ebca.runtime.devices.choice import AUTO, DeviceChoice, parse
from ebca.runtime.devices.device import Device
from ebca.runtime.generation import engine_parameters
from ebca.runtime.images.files import read_parameters
from ebca.runtime.images.inputs import fitted_size, image_size
from ebca.runtime.request import names
from ebca.runtime.request.fields import FIELD_PARTS, GenerateRequest
from ebca.runtime.request.inputs import chosen_count, implied_count, size_giver
from ebca.runtime.request.serialization import from_parameters
from ebca.runtime.results import Result
from ebca.runtime.runners import OnPrepare
from ebca.runtime.sampling.progress import OnStep
from ebca.runtime.schema import parameters as rules
from ebca.runtime.session import Session
from ebca.runtime.validation import callback, warn

_LOAD = (
    "engine",
    "device",
    "backend",
    "precision",
    "threads",
    "on_prepare",
    "on_device",
    "lora",
    "embedding",
    "on_merge",
)
_GENERATE = (*FIELD_PARTS, "height", "width", "num_images", "on_step")

log = logging.getLogger(__name__)

OnDevice = Callable[[DeviceChoice], None]
"""Called with the device of an engine and why it is this one, before components are prepared for it."""


def load(
    engine: str | Path,
    device: str = AUTO,
    backend: str | None = None,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    on_prepare: OnPrepare | None = None,
    on_device: OnDevice | None = None,
    lora: LoraArgument | Sequence[LoraArgument] = (),
    embedding: EmbeddingArgument | Sequence[EmbeddingArgument] = (),
    on_merge: OnPrepare | None = None,
    **unknown: Never,
) -> "Engine":
    """Open an engine directory.

    The first call on a machine prepares every component for it, and keeps the result in the user's cache. This takes up
    to a minute at SD 1.5 size; later calls take a second or two.

    "auto" is the GPU if the directory computes in float16 and everything for the first GPU is there: driver and
    cuda-bindings, and plans for this GPU with their library, or ONNX Runtime with CUDA. Else it is the CPU. A backend
    decides by where it runs, and precision and threads are for the CPU. If the GPU then turns out to be unusable while
    this function opens it, for example because its memory is full, the CPU is used; later errors are raised. The
    choice and its reason are logged (INFO), are `Engine.device_choice`, and go to `on_device`. With any other device,
    nothing is ever replaced by the CPU.

    Args:
        engine: the directory, or the name of a bundled engine.
        device: "auto", "cpu", "cuda" (the first GPU), "cuda:1" and so on.
        backend: on the CPU "onnxruntime" or "openvino"; None: openvino for bf16 if installed, else onnxruntime. On a
            GPU "tensorrt-rtx", "tensorrt" or "onnxruntime-cuda"; None: the library that the directory has plans for,
            else onnxruntime-cuda. "auto" also takes onnxruntime-cuda if the plans cannot run here.
        precision: "fp32", or "bf16" if the backend and the processor support it.
        threads: on the CPU; None: one per physical core.
        on_prepare: called with (done, total, component) while components are prepared.
        on_device: called with the device and the reason before components are prepared.
        lora: LoRAs to merge into the weights: a file, "FILE:0.8", (file, 0.8), or a list of these. The engine is opened
            from a derived directory in the user's cache, which the first use writes; `engine` is not changed.
        embedding: textual inversions: a file, "FILE=token", (file, "token"), or a list of these; likewise.
        on_merge: called with (done, total, file) while a derived directory is written.

    Raises:
        EngineError: the directory cannot be used, or LoRAs cannot be merged into it.
        BackendError: the device or the backend is missing, or cannot run the engine.
        ParameterError: an unknown name, or values that do not go together. For a name that is not a parameter, the
            error is a TypeError too.
    """
    if unknown:
        raise names.unknown(unknown, "ebca.load", _LOAD, names.LOAD)
    parse(device)
    callback("on_prepare", on_prepare)
    callback("on_device", on_device)
    callback("on_merge", on_merge)
    directory = merged(open_directory(engine), lora, embedding, on_merge)
    found = devices.open_for(directory, device, backend, BackendOptions(threads=threads, precision=precision))
    log.info("%s", found.choice)
    if on_device is not None:
        on_device(found.choice)
    compute = directory.manifest.compute
    kind = precision if compute == "fp32" else compute
    opened = Engine(directory, found.backend, found.device, kind, found.choice, threads)
    opened.prepare(on_prepare)
    return opened


class Engine(Components):
    """An opened engine directory. Thread-safe: sessions own their buffers, the engine owns the opened components.

    Attributes:
        device_choice: the device, and why it is this one.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        backend: Backend,
        device: Device,
        precision: str = "fp32",
        choice: DeviceChoice | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(directory, backend, device, precision)
        self._threads = threads
        self.device_choice = choice or DeviceChoice(device.name, "as asked", backend.name)

    def with_lora(
        self,
        lora: LoraArgument | Sequence[LoraArgument] = (),
        *,
        embedding: EmbeddingArgument | Sequence[EmbeddingArgument] = (),
        on_prepare: OnPrepare | None = None,
        on_merge: OnPrepare | None = None,
    ) -> "Engine":
        """Another engine, on the same device, with LoRAs merged into its weights and textual inversions added.

        This one stays as it is, and open. Parameters and errors are those of `load`. An engine that was made in this
        way takes no more: give all files at once.
        """
        self.check_open()
        compute = self.directory.manifest.compute
        return load(
            self.directory.path,
            self.device_choice.device,
            self.backend.name,
            precision=self.precision if compute == "fp32" else "fp32",
            threads=self._threads,
            on_prepare=on_prepare,
            lora=lora,
            embedding=embedding,
            on_merge=on_merge,
        )

    def session(
        self,
        height: int | None = rules.SESSION.height,
        width: int | None = rules.SESSION.width,
        batch: int = rules.SESSION.batch,
        **unknown: Never,
    ) -> Session:
        """A session for images of one size, see `Session`."""
        if unknown:
            raise names.unknown(unknown, "Engine.session", ("height", "width", "batch"), names.SESSION)
        return Session(self, height=height, width=width, batch=batch)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int | None = None,
        on_step: OnStep | None = None,
        **fields: Any,
    ) -> Result:
        """Generate images in a session that fits the request and is closed at the end.

        A session of one's own is faster for many images of one size on a GPU: it keeps what was recorded for that size.

        Args:
            prompt: one text for all images, or one per image.
            height, width: in pixels, multiples of 8. If both are None: those of `latents`, if given; about the model's
                size with the aspect ratio of `image`, else of the first `control`, if given; else the model's size.
            num_images: number of all images. None: as many as the longest list among prompts, seeds, images and masks.
                For several images per prompt, repeat the prompts.
            on_step: called after each evaluation; return False to cancel.
            fields: as in `Session.generate`.

        Raises:
            ParameterError, EngineError, CancelledError, NumericalError: as in `Session.generate`.
        """
        if missing := [name for name in fields if name not in FIELD_PARTS]:
            raise names.unknown(missing, "Engine.generate", _GENERATE, names.ENGINE_FIELDS)
        request = GenerateRequest.of(prompt=prompt, **fields)
        return self.run(request, height=height, width=width, num_images=num_images, on_step=on_step)

    def run(
        self,
        request: GenerateRequest,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Like `generate`, for a request as one value."""
        count = chosen_count(request, num_images)
        if height is None and width is None:
            height, width = self._fitting(request)
        with self.session(height, width, count) as session:
            return session.run(request, on_step)

    def repeat(self, path: str | Path, *, on_step: OnStep | None = None, **changes: Any) -> Result:
        """Repeat the generation that is recorded in an image file, with all its images.

        With the same engine and backend, on a machine of the same kind, the images are the same. Another engine or
        backend is tried with a warning.

        Args:
            path: a file that `Result.save` or ebca-run wrote.
            on_step: called after each evaluation; return False to cancel.
            changes: height, width, num_images, or fields to replace. What was given as arrays is not recorded and must
                be given again; files of images and masks must be those that were used.

        Raises:
            ParameterError: a file without parameters, an input that is not recorded, is missing, or has changed.
            EngineError, CancelledError, NumericalError: as in `Session.generate`.
        """
        parameters = read_parameters(path)
        if missing := [name for name in changes if name not in _GENERATE]:
            raise names.unknown(missing, "Engine.repeat", _GENERATE, names.ENGINE_FIELDS)
        sizes = {name: changes.pop(name) if name in changes else parameters.get(name) for name in ("height", "width")}
        count = changes.pop("num_images", None)
        request = from_parameters(parameters, **changes)
        if count is None and implied_count(request) == 1:
            count = parameters.get("num_images")
        warn_of_differences(path, parameters, self)
        return self.run(request, num_images=count, on_step=on_step, **sizes)

    def _fitting(self, request: GenerateRequest) -> tuple[int | None, int | None]:
        """Height and width for a request without them; None: the model's."""
        vae, image = self.manifest.vae, size_giver(request)
        shape: tuple[int, ...] = getattr(request.latents, "shape", ())
        downscale = vae.downscale if vae else rules.DEFAULT_DOWNSCALE
        if len(shape) == 4:
            return shape[2] * downscale, shape[3] * downscale
        if image is None:
            return None, None
        return fitted_size(image_size(image), self.manifest.unet.sample_size * downscale, downscale)


def warn_of_differences(path: str | Path, parameters: Mapping[str, Any], engine: Engine) -> None:
    """Warn if the recorded parameters of an image file are of another engine, backend or precision."""
    # The same engine may lie elsewhere.
    here = {name: value for name, value in engine_parameters(engine).items() if name not in ("engine", "adapters")}
    pairs = [(name, parameters.get(name), value) for name, value in here.items()]
    pairs.append(("LoRAs and embeddings", _merged(parameters), _merged(engine_parameters(engine))))
    differ = [f"{name} {recorded}, here {value}" for name, recorded, value in pairs if recorded != value]
    if differ:
        warn(f"'{path}' was made with another engine ({'; '.join(differ)}); the image will differ")


def _merged(parameters: Mapping[str, Any]) -> str:
    """What was merged into an engine, wherever the files lie."""
    found = parameters.get("adapters")
    entries = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    names = ("kind", "sha256", "scale", "token")
    return (
        ", ".join(" ".join(str(one.get(n))[:12] for n in names if one.get(n) is not None) for one in entries) or "none"
    )
