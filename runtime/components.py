"""The components of an engine directory, opened on a device and shared by sessions and threads."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from ebca.engines.backends.protocol import Backend, Runner
from ebca.engines.cache.prepared import prepared_engine
from ebca.engines.cache.storage import evict
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import Manifest
from ebca.engines.machine.memory import address, nbytes
from ebca.runtime.devices.device import Device, MirroredBuffer
from ebca.runtime.execution.executor import Executor
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.tokenizer import Tokenizer

OnPrepare = Callable[[int, int, str], None]
"""Called with (done, total, component) while components are prepared."""

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
        self._prepared = prepared_engine(directory, backend)
        self._runners: dict[str, Runner] = {}
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._tables_verified = False

    @property
    def manifest(self) -> Manifest:
        return self.directory.manifest

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
        if manifest.text_encoder:
            names.append(manifest.text_encoder.component)
        if manifest.vae:
            names.append(manifest.vae.decoder)
        with self._lock, _preparing:
            self._prepared.prepare(names, on_prepare)
        evict(keep=self._prepared.folder)

    def runner(self, component: str) -> Runner:
        """An opened component. It is opened on first use and shared.

        Raises:
            EngineError, BackendError: it cannot be opened.
        """
        with self._lock:
            if component not in self._runners:
                self._runners[component] = self._prepared.open(component)
            return self._runners[component]

    def release(self, component: str) -> None:
        """Close a component until its next use. Existing bindings keep it open."""
        with self._lock:
            self._runners.pop(component, None)

    def forget_weights(self) -> None:
        """Drop the UNet's memory-mapped weights from memory. The next use reads them from the page cache."""
        unet = self.manifest.unet
        self._prepared.forget([*unet.segments, *([unet.full_unet] if unet.full_unet else [])])

    def open_all(self) -> None:
        """Open all segments now, rather than at the first step of a generation."""
        for name in self.manifest.unet.segments:
            self.runner(name)

    def executor(self, sizes: Mapping[str, int]) -> Executor:
        """A new executor with its own buffers, see `ebca.runtime.execution.executor`.

        Args:
            sizes: batch, contexts, tokens, height, width (latent).

        Raises:
            ParameterError: not enough memory.
        """
        try:
            return Executor(self.manifest.unet, self.runner, sizes, self.device, self.full_unet_with_updates)
        except MemoryError:
            named = {"rows": sizes["batch"], "height": sizes["height"], "width": sizes["width"]}
            raise rules.NO_MEMORY.error(**named) from None

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
            self.directory.verify([spec.file])
            self._tokenizer = Tokenizer.load(self.directory.file(spec.file), spec.info)
        return self._tokenizer

    def verify_tables(self) -> None:
        """Check the scheduler tables against the manifest, once. Raises EngineError if a file differs."""
        if not self._tables_verified:
            section = self.manifest.schedulers
            names = [section.get("alphas_cumprod"), *(t["file"] for t in section.get("tables", {}).values())]
            self.directory.verify(name for name in names if name in self.manifest.files)
            self._tables_verified = True

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [n,T] int64 -> embeddings [n,T,D] float32. Raises EngineError without a text encoder."""
        spec = self.manifest.text_encoder
        if spec is None:
            raise rules.NO_TEXT_ENCODER.error(path=self.directory.path)
        shape = (len(ids), spec.max_length, spec.hidden_size)
        return self._evaluate(spec.component, {"input_ids": ids}, {"hidden_states": shape})["hidden_states"]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Scaled latents [n,C,h,w] -> images [n,3,8h,8w] float32 in [-1, 1]. One image at a time, to bound memory.

        Raises:
            EngineError: there is no VAE.
            ParameterError: another number of channels.
        """
        spec = self.manifest.vae
        if spec is None:
            raise rules.NO_VAE_TO_DECODE.error()
        n, channels, height, width = latents.shape
        if channels != spec.latent_channels:
            raise rules.LATENTS_CHANNELS.error(count=channels, expected=spec.latent_channels)
        images = np.empty((n, 3, height * spec.downscale, width * spec.downscale), np.float32)
        unscaled = latents / spec.scaling_factor + spec.shift_factor
        for index in range(n):
            one = slice(index, index + 1)
            images[one] = self._evaluate(spec.decoder, {"latents": unscaled[one]}, {"image": images[one].shape})[
                "image"
            ]
        return images

    def encode_image(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [n,H,W,3] in [0, 1] -> mean and standard deviation of their scaled latents, [n,C,h,w] float32 each.

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
        return (mean - spec.shift_factor) * np.float32(spec.scaling_factor), std * np.float32(spec.scaling_factor)

    def _evaluate(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Run a component once on the device. Returns its outputs, which have the shapes in `outputs`."""
        component, device = self.manifest.components[name], self.device

        def share(shape: tuple[int, ...], dtype: str) -> MirroredBuffer:
            return device.share(device.allocate(nbytes(shape, dtype)).view(0, shape, dtype))

        given = {n: share(array.shape, component.inputs[n].dtype) for n, array in inputs.items()}
        made = {n: share(shape, component.outputs[n].dtype) for n, shape in outputs.items()}
        for n, array in inputs.items():
            given[n].host[...] = array
        arrays = {n: s.array for n, s in given.items()}, {n: s.array for n, s in made.items()}
        with device.ready():
            runner = self.runner(name)
            need = runner.workspace_bytes(*arrays)
            scratch = device.allocate(need).view(0, (need,), np.uint8) if need else None
            call = runner.bind(*arrays, 0 if scratch is None else address(scratch))
        device.upload(list(given.values()))
        device.run(call)
        device.download(list(made.values()))
        return {n: s.host for n, s in made.items()}

    def flush_caches(self) -> None:
        """Persist compilation results for later processes."""
        self.backend.flush_caches()

    def close(self) -> None:
        """Close all components. Open sessions keep theirs. Closing twice is fine."""
        self.backend.flush_caches()
        with self._lock:
            self._runners.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
