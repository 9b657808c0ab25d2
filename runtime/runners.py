"""The graphs of an engine directory, opened on a device and shared by sessions and threads."""

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
from ebca.engines.contract.manifest import Manifest
from ebca.engines.machine.memory import nbytes
from ebca.errors import DeviceMemoryError
from ebca.runtime.devices.device import Device, MirroredBuffer
from ebca.runtime.execution.binding import bind_alone
from ebca.runtime.execution.executor import Executor
from ebca.runtime.schema import parameters as rules
from ebca.runtime.validation import warn

_T = TypeVar("_T")

OnPrepare = Callable[[int, int, str], None]
"""Called with (done, total, component) while components are prepared."""

# A component that is opened per size stays open for the sizes that were used last.
_KEPT_SIZES = 2

# Finding the mappings of a process takes milliseconds. The C library has the same number.
_FEW_WEIGHTS_BYTES = 256 << 20

# Two engines of one process may use the same cache folder.
_preparing = threading.Lock()


class Runners:
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
        """Drop the UNet's memory-mapped weights from memory, unless they are few. The next use reads them from the page
        cache."""
        unet, components = self.manifest.unet, self.manifest.components
        names = [*unet.segments, *([unet.full_unet] if unet.full_unet else [])]
        files = {file for name in names for file in components[name].files(self.backend.name)}
        if sum(self.manifest.files[file].size for file in files) >= _FEW_WEIGHTS_BYTES:
            self._prepared.forget(names)

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
            call = bind_alone(runner, *arrays, device, once=True)
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
