"""The components of an engine directory, opened on a device and shared by sessions and threads."""

import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from ebca.engines.backends.protocol import Backend, Runner
from ebca.engines.cache.prepared import prepared_engine
from ebca.engines.cache.storage import evict
from ebca.engines.contract import dims
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import ControlNetSpec, Manifest, TextEncoderSpec
from ebca.engines.machine.memory import nbytes
from ebca.errors import DeviceMemoryError
from ebca.runtime.devices.device import Device, MirroredBuffer
from ebca.runtime.execution.binding import bind_alone
from ebca.runtime.execution.executor import Executor
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.tokenizer import Tokenizer
from ebca.runtime.validation import warn

_T = TypeVar("_T")

OnPrepare = Callable[[int, int, str], None]
"""Called with (done, total, component) while components are prepared."""

# A component that is opened per size stays open for the sizes that were used last.
_KEPT_SIZES = 2
# Texts that a component of fixed shape encodes together: a prompt and its negative prompt.
_TEXTS_AT_ONCE = 2

# Two engines of one process may use the same cache folder.
_preparing = threading.Lock()


class Components:
    """Opens, keeps and runs components. Thread-safe; sessions own their buffers.

    Args:
        directory: the engine directory.
        backend: opens components.
        device: where they run.
        precision: what the backend computes in: "fp32", "bf16" or "fp16".
    """

    def __init__(
        self,
        directory: EngineDirectory,
        backend: Backend,
        device: Device,
        precision: str = "fp32",
    ) -> None:
        self.directory = directory
        self.backend = backend
        self.precision = precision
        self.device = device
        self._prepared = prepared_engine(directory, backend, warn)
        self._runners: dict[str, dict[tuple[tuple[str, int], ...], Runner]] = {}
        # Runners that have run outside of recorded work.
        self._settled: weakref.WeakSet[Runner] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._tokenizer: Tokenizer | None = None
        self._tables_verified = False
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        return self.directory.manifest

    def __repr__(self) -> str:
        where = f"{self.device.name}, {self.backend.name}, {self.precision}{', closed' if self._closed else ''}"
        return f"<ebca.{type(self).__name__} '{self.manifest.model['name']}' in '{self.directory.path}': {where}>"

    def check_open(self) -> None:
        """Raise ParameterError if the engine is closed. Every call asks before it begins."""
        if self._closed:
            raise rules.ENGINE_CLOSED.error()

    def prepare(self, on_prepare: OnPrepare | None = None) -> None:
        """Prepare every component that is not in the cache yet, then evict old engines from the cache.

        Args:
            on_prepare: called with (done, total, component); not called if there is nothing to prepare.

        Raises:
            EngineError, BackendError: a component cannot be prepared.
        """
        manifest = self.manifest
        names = [*manifest.unet.segments, *(c for op in manifest.unet.ops.values() for c in op.values())]
        if manifest.unet.full_unet:
            names.append(manifest.unet.full_unet)
        names += [name for net in manifest.controlnets.values() for name in (net.hint, net.component)]
        if manifest.text_encoder:
            names.append(manifest.text_encoder.component)
        if manifest.vae:
            names.append(manifest.vae.decoder)
        with self._lock, _preparing:
            self._prepared.prepare(names, on_prepare)
        if self._prepared.folder is not None:
            evict(keep=self._prepared.folder, directory=self.directory.path)

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """An opened component. It is opened on first use and shared.

        Args:
            component: its name.
            sizes: batch, contexts, tokens, height, width, as far as its shapes use them.

        Raises:
            EngineError, BackendError: it cannot be opened.
            DeviceMemoryError: the device has too little memory left for it.
        """
        # The device first, as wherever both are held.
        with self.device.ready(), self._lock:
            dimensions = self._dimensions(component, sizes)
            key = tuple(sorted(dimensions.items()))
            opened = self._runners.setdefault(component, {})
            runner = opened.pop(key, None)
            if runner is None:
                while len(opened) >= _KEPT_SIZES:
                    opened.pop(next(iter(opened)))
                runner = self._open(component, dimensions)
            # The one used last is the last to go. Opening may have closed others, this component's among them.
            self._runners.setdefault(component, {})[key] = runner
            return runner

    def _dimensions(self, component: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """What to open a component for, see `Backend.fixes_shapes`."""
        if not self.backend.fixes_shapes:
            return {}
        spec = self.manifest.components[component]
        return dims.fixed((t.shape for t in (*spec.inputs.values(), *spec.outputs.values())), sizes)

    def _open(self, component: str, dimensions: Mapping[str, int]) -> Runner:
        if self.backend.shares_scratch:
            self.device.invalidate()
        return self.with_room(partial(self._prepared.open, component, dimensions))

    def release(self, component: str) -> None:
        """Close a component that sampling does not need, unless the backend keeps components open. Existing bindings
        keep it open."""
        if not self.backend.stays_open:
            with self._lock:
                self._runners.pop(component, None)

    def _close_idle(self) -> None:
        """Close what sampling does not need, because memory is short. They open again at their next use."""
        manifest = self.manifest
        texts = manifest.text_encoder
        encoders = [texts.component, *([texts.layers_component] if texts.layers_component else [])] if texts else []
        for name in (*encoders, *((manifest.vae.decoder, manifest.vae.encoder) if manifest.vae else ())):
            self._runners.pop(name, None)

    def forget_weights(self) -> None:
        """Drop the UNet's memory-mapped weights from memory. The next use reads them from the page cache."""
        unet = self.manifest.unet
        self._prepared.forget([*unet.segments, *([unet.full_unet] if unet.full_unet else [])])

    def open_all(self) -> None:
        """Open all segments now, rather than at the first step of a generation. A backend that opens components for
        given sizes waits for them."""
        if not self.backend.fixes_shapes:
            for name in self.manifest.unet.segments:
                self.runner(name, {})

    def executor(self, sizes: Mapping[str, int], groups: int = 0) -> Executor:
        """A new executor with its own buffers, see `ebca.runtime.execution.executor`.

        Args:
            sizes: batch, contexts, tokens, height, width (latent).
            groups: of tokens, for the guided variants of the op.

        Raises:
            OutOfMemoryError: not enough memory.
        """
        unet = self.manifest.unet
        make = partial(
            Executor,
            unet,
            self.runner,
            sizes,
            self.device,
            self.full_unet_with_updates,
            channels_last=unet.channels_last.get(self.backend.name, ()),
            groups=groups,
        )
        try:
            return self.with_room(make)
        except MemoryError:
            named = {"rows": sizes["batch"], "height": sizes["height"], "width": sizes["width"]}
            raise rules.NO_MEMORY.error(**named) from None

    def with_room(self, do: Callable[[], _T]) -> _T:
        """The result of a function. If the device has too little memory, it is tried again after closing what sampling
        does not need."""
        try:
            return do()
        except DeviceMemoryError:
            with self._lock:
                self._close_idle()
            return do()

    @property
    def full_unet_with_updates(self) -> str | None:
        """The component that runs an evaluation with updates as one graph; None if the backend has no plan for it."""
        component, plans = self.manifest.unet.full_unet_with_updates, self.manifest.plans.get(self.backend.name)
        return component if plans is not None and component in plans.components else None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use. Raises EngineError for a UNet-only directory."""
        spec = self.manifest.tokenizer
        if spec is None:
            raise rules.UNET_ONLY.error(path=self.directory.path)
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_bytes(self.directory.read(spec.file), spec.info)
        return self._tokenizer

    def verify_tables(self) -> None:
        """Check the scheduler tables against the manifest, once. Raises EngineError if a file differs."""
        if not self._tables_verified:
            section = self.manifest.schedulers
            self.directory.verify([section["alphas_cumprod"], *(table["file"] for table in section["tables"].values())])
            self._tables_verified = True

    def encode(self, ids: np.ndarray, clip_skip: int = 0) -> np.ndarray:
        """Token ids [n,T] int64 -> embeddings [n,T,D] float32.

        Args:
            ids: of the tokens.
            clip_skip: layers of the text encoder to leave out at its end.

        Raises:
            EngineError: there is no text encoder, or only its last layer.
        """
        spec = self.manifest.text_encoder
        if spec is None:
            raise rules.NO_TEXT_ENCODER.error(path=self.directory.path)
        name, more = spec.component, {}
        if clip_skip:
            name, more = self._layers_component(spec), {"skip": np.array([clip_skip], np.int64)}
        at_once = _TEXTS_AT_ONCE if self.backend.fixes_shapes else len(ids)
        parts = []
        for first in range(0, len(ids), at_once):
            some = ids[first : first + at_once]
            # Rows are independent; the last one fills up what a component of fixed shape expects.
            filled = np.concatenate([some, np.repeat(some[-1:], at_once - len(some), axis=0)])
            shape = (at_once, spec.max_length, spec.hidden_size)
            made = self._evaluate(name, {"input_ids": filled, **more}, {"hidden_states": shape})["hidden_states"]
            parts.append(made[: len(some)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _layers_component(self, spec: TextEncoderSpec) -> str:
        """The component that returns any layer of the text encoder. Raises EngineError if there is none here."""
        plans = self.manifest.plans.get(self.backend.name)
        if spec.layers_component is None:
            raise rules.CLIP_SKIP_ENGINE.error()
        if plans is not None and spec.layers_component not in plans.components:
            raise rules.CLIP_SKIP_PLANS.error(backend=self.backend.name)
        return spec.layers_component

    def release_text_encoder(self) -> None:
        """`release` what encodes texts."""
        spec = self.manifest.text_encoder
        for name in () if spec is None else (spec.component, spec.layers_component):
            if name is not None:
                self.release(name)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Scaled latents [n,C,h,w] -> images [n,3,8h,8w] float32 in [-1, 1]. One image at a time, to bound memory.

        Raises:
            EngineError: there is no VAE.
            ParameterError: another number of channels.
        """
        spec = self.manifest.vae
        if spec is None:
            raise rules.NO_VAE_TO_DECODE.error()
        if latents.shape[1] != spec.latent_channels:
            raise rules.LATENTS_CHANNELS.error(count=latents.shape[1], expected=spec.latent_channels)
        return self._decoded(spec.decoder, latents / spec.scaling_factor + spec.shift_factor, spec.downscale)

    def decode_preview(self, latents: np.ndarray) -> np.ndarray:
        """`StepInfo.unit_latents` [n,C,h,w] -> images [n,3,8h,8w] float32 in about [-1, 1], by the small decoder.

        Raises:
            EngineError: there is none.
        """
        spec = self.manifest.vae
        if spec is None or spec.preview is None:
            raise rules.NO_VAE_TO_DECODE.error()
        return self._decoded(spec.preview, latents, spec.downscale)

    def _decoded(self, decoder: str, latents: np.ndarray, downscale: int) -> np.ndarray:
        n, _, height, width = latents.shape
        images = np.empty((n, 3, height * downscale, width * downscale), np.float32)
        for index in range(n):
            one = slice(index, index + 1)
            made = self._evaluate(decoder, {"latents": latents[one]}, {"image": images[one].shape})
            images[one] = made["image"]
        return images

    def encode_image(self, pixels: np.ndarray, *, scaled: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Images [n,H,W,3] in [0, 1] -> mean and standard deviation of their latents, [n,C,h,w] float32 each.

        Args:
            pixels: the images.
            scaled: as the UNet denoises them; else as the VAE gives them.

        Raises:
            EngineError: there is no VAE.
        """
        spec = self.manifest.vae
        if spec is None:
            raise rules.NO_VAE_FOR_IMAGE.error(path=self.directory.path)
        n, height, width, _ = pixels.shape
        shape = (spec.latent_channels, height // spec.downscale, width // spec.downscale)
        mean, std = np.empty((n, *shape), np.float32), np.empty((n, *shape), np.float32)
        images = pixels.transpose(0, 3, 1, 2) * 2 - 1
        for index in range(n):
            one = slice(index, index + 1)
            made = self._evaluate(spec.encoder, {"image": images[one]}, {"mean": (1, *shape), "std": (1, *shape)})
            mean[one], std[one] = made["mean"], made["std"]
        # Not needed until the next call with an image.
        self.release(spec.encoder)
        if not scaled:
            return mean, std
        return (mean - spec.shift_factor) * np.float32(spec.scaling_factor), std * np.float32(spec.scaling_factor)

    def encode_hint(self, spec: ControlNetSpec, pixels: np.ndarray) -> np.ndarray:
        """Images [n,H,W,3] in [0, 1] -> what a ControlNet reads of them, [n,C,h,w] float32."""
        n, height, width, _ = pixels.shape
        channels = self.manifest.components[spec.hint].outputs["hint"].shape[1]
        assert isinstance(channels, int)
        hint = np.empty((n, channels, height // spec.downscale, width // spec.downscale), np.float32)
        images = pixels.transpose(0, 3, 1, 2)
        for index in range(n):
            one = slice(index, index + 1)
            hint[one] = self._evaluate(spec.hint, {"image": images[one]}, {"hint": hint[one].shape})["hint"]
        # Not needed until the next call with an image.
        self.release(spec.hint)
        return hint

    def warm_up_decoder(self, latent_shape: tuple[int, ...]) -> None:
        """Open the VAE's decoder for latents [n,C,h,w] and run it once, if that would later outdate recorded work."""
        spec = self.manifest.vae
        if spec is None or not self.backend.shares_scratch:
            return
        _, channels, height, width = latent_shape
        sizes = {"batch": 1, "height": height, "width": width}
        if self.runner(spec.decoder, sizes) not in self._settled:
            self.decode(np.zeros((1, channels, height, width), np.float32))

    def _evaluate(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Run a component once on the device. Returns its outputs, which have the shapes in `outputs`."""
        return self.with_room(partial(self._evaluate_once, name, inputs, outputs))

    def _evaluate_once(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        component, device = self.manifest.components[name], self.device

        def share(shape: tuple[int, ...], dtype: str) -> MirroredBuffer:
            return device.share(device.allocate(nbytes(shape, dtype)).view(0, shape, dtype))

        given = {n: share(array.shape, component.inputs[n].dtype) for n, array in inputs.items()}
        made = {n: share(shape, component.outputs[n].dtype) for n, shape in outputs.items()}
        for n, array in inputs.items():
            given[n].host[...] = array
        arrays = {n: s.array for n, s in given.items()}, {n: s.array for n, s in made.items()}
        sizes = dims.sizes_of((component.inputs[n].shape for n in inputs), (array.shape for array in inputs.values()))
        # Nothing recorded may run before it is outdated.
        with device.ready():
            runner = self.runner(name, sizes)
            call = bind_alone(runner, *arrays, device)
            device.upload(list(given.values()))
            device.run(call)
            device.download(list(made.values()))
            if self.backend.shares_scratch and runner not in self._settled:
                # A library may keep memory from the first run on.
                device.invalidate()
                self._settled.add(runner)
        return {n: s.host for n, s in made.items()}

    def flush_caches(self) -> None:
        """Persist compilation results for later processes."""
        self.backend.flush_caches()

    def close(self) -> None:
        """Close all components. A call that runs comes to its end, later ones are refused. Closing twice is fine."""
        self._closed = True
        self.backend.flush_caches()
        with self._lock:
            self._runners.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
