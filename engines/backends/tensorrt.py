"""TensorRT and TensorRT for RTX: open plans that were built ahead of time.

The caller owns all addresses and all scratch memory, and nothing is allocated while a run is enqueued, so a whole step
can be captured in one CUDA graph. The kernels that TensorRT for RTX compiles when a plan first runs on a GPU are kept
in a runtime cache. Written against TensorRT for RTX 1.7, and no plan has run on a GPU yet: the one at hand had compute
capability 9.0, which the library refuses. `ebca.export.plans.tensorrt` builds the plans.
"""

import json
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ebca.engines.backends.gpu_target import GpuTarget
from ebca.engines.backends.protocol import Arrays, Backend, Call
from ebca.engines.backends.tensorrt_library import (
    RTX,
    check_target,
    identity,
    load_library,
    logger,
    plans_of,
    runtime_cache,
)
from ebca.engines.contract.manifest import Component
from ebca.engines.contract.plans import Plan
from ebca.engines.machine.memory import address
from ebca.errors import BackendError, EngineError

log = logging.getLogger(__name__)


def create(target: GpuTarget) -> "TensorRTBackend":
    """Raises as `TensorRTBackend` does."""
    return TensorRTBackend(target)


class TensorRTBackend(Backend):
    """Opens the plans of an engine directory on one GPU. Nothing is prepared: the export has built the plans.

    Args:
        target: an engine directory with plans for the library `target.backend`, see LIBRARIES.
        module: replaces the library's Python module in tests.

    Raises:
        BackendError: the library is missing, or the directory has no plans for it, this GPU, platform and version.
    """

    stays_open = True

    def __init__(self, target: GpuTarget, module: Any = None) -> None:
        self.name = library = target.backend
        self._directory = directory = target.directory
        self._stream = target.stream
        self._gpu = target.gpu
        self._plans = plans_of(directory, library)
        self._trt = module or load_library(library)
        check_target(self._plans, library, self._gpu, str(self._trt.__version__))
        self._log = logger(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._plugins: object = None
        # Only the plan of the full UNet with updates holds plugins.
        if target.register and directory.manifest.unet.full_unet_with_updates in self._plans.components:
            self._plugins = target.register(self._trt, self._runtime.get_plugin_registry())
        self._opened: list[_Opened] = []
        self._lock = threading.Lock()

    def identity(self) -> dict[str, str]:
        """Everything besides its plan that a runtime cache depends on."""
        return identity(self.name, str(self._trt.__version__), self._gpu)

    def open(self, graph: Path, component: Component, dimensions: Mapping[str, int] | None = None) -> "TensorRTRunner":
        """Open a component; its plan is loaded when the shapes of its inputs are known.

        Raises:
            BackendError: it has no plan.
        """
        components = self._directory.manifest.components
        name = next((name for name, known in components.items() if known.graph == component.graph), None)
        if name is None or name not in self._plans.components:
            raise BackendError(f"'{name or component.graph}' has no plan for {self.name}", "export the engine again")
        return TensorRTRunner(self, name)

    def flush_caches(self) -> None:
        """Persist what was compiled for this GPU for later processes."""
        for opened in self._opened:
            if opened.file is not None:
                opened.file.save(opened.cache)

    def load(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> "_Opened":
        """The plan of a component for the shapes of its inputs, opened on first use.

        Raises:
            BackendError: the library refuses the plan; the message says why.
            EngineError: no plan was built for these shapes, or its file is damaged.
        """
        plan = self._plans.find(name, shapes)
        with self._lock:
            opened = next((one for one in self._opened if one.plan is plan), None)
            if opened is None:
                opened = self._open_plan(plan)
                self._opened.append(opened)
            return opened

    def _open_plan(self, plan: Plan) -> "_Opened":
        self._directory.verify([plan.file])
        data = self._directory.file(plan.file).read_bytes()
        self._check(plan, data)
        self._log.forget()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"{self.name} cannot open '{plan.file}': {self._log.first}", "export the engine again")
        return _Opened(self._trt, plan, engine, self._cache_file(plan) if self.name == RTX else None)

    def enqueue(self, context: Any, file: str) -> Call:
        """A call that enqueues one run on the backend's stream and does not wait for it."""
        stream = self._stream

        def call() -> None:
            if not context.execute_async_v3(stream):
                raise BackendError(f"'{file}' failed on the GPU", "run `ebca-doctor --engine DIR`")

        return call

    def check_capturable(self, context: Any, file: str) -> None:
        """Warn if a run cannot be captured in a CUDA graph: its steps are then enqueued call by call."""
        check = getattr(context, "is_stream_capturable", None)
        if check is not None and not check(self._stream):
            log.warning("'%s' cannot be recorded as a CUDA graph; export the engine again for full speed", file)

    def _cache_file(self, plan: Plan) -> "RuntimeCache":
        try:
            folder = runtime_cache(self.name, str(self._trt.__version__), self._gpu)
        except EngineError as error:
            return RuntimeCache(None, self.identity(), str(error))
        path = folder / f"{self._directory.manifest.files[plan.file].sha256[:24]}.cache"
        return RuntimeCache(path, self.identity())

    def _check(self, plan: Plan, data: bytes) -> None:
        """Let the library check the plan's header, which takes no time, before it loads the whole plan."""
        check = getattr(self._runtime, "get_engine_validity", None)
        if check is None:
            return
        validity, diagnostics = check(data[: self._runtime.engine_header_size])
        if validity == self._trt.EngineValidity.INVALID:
            why, remedy = reasons(self._trt, int(diagnostics))
            raise BackendError(f"{self.name} refuses '{plan.file}': {why}", remedy)


_REASONS = {
    "VERSION_MISMATCH": ("it was built with another version", "install that one, or export the engine again"),
    "UNSUPPORTED_CC": ("it was not built for this GPU", "export again with its --compute-capability"),
    "OLD_CUDA_DRIVER": ("the NVIDIA driver is too old", "update the driver"),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old", "update CUDA"),
    "INSUFFICIENT_GPU_MEMORY": ("the GPU has too little memory", "close other programs"),
    "MALFORMED_ENGINE": ("it is not a plan of this library", "export the engine again"),
    "CUDA_ERROR": ("CUDA does not work here", "check the driver with `nvidia-smi`"),
}


def reasons(trt: Any, diagnostics: int) -> tuple[str, str]:
    """The bits of EngineInvalidityDiagnostics in words, and the remedy for the first."""
    found = [
        words
        for name, words in _REASONS.items()
        if (bit := getattr(trt.EngineInvalidityDiagnostics, name, None)) is not None and diagnostics & int(bit)
    ]
    if not found:
        return f"it gives no reason (diagnostics {diagnostics})", "check the driver with `nvidia-smi`"
    return ", ".join(words for words, _ in found), found[0][1]


class RuntimeCache:
    """The file that holds a plan's kernels as compiled for this GPU.

    Args:
        path: the file; None if there is no folder for it.
        identity: what its folder's key was made of.
        reason: why there is none.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str], reason: str = "") -> None:
        self._path = path
        self._identity = identity
        self._reason = reason
        self._stored = b""

    def load(self, cache: Any) -> bool:
        """Fill the library's cache from the file. False if the file is missing or the library rejects it: then the
        library compiles again, and `save` replaces the file."""
        if self._path is None:
            return False
        try:
            self._stored = self._path.read_bytes()
        except OSError:
            return False
        if not cache.deserialize(self._stored):
            self._stored = b""
        return bool(self._stored)

    def save(self, cache: Any) -> None:
        """Write the file if its contents have changed. If that fails, a warning is logged: the images are made by
        then, and only the next process loses time."""
        data = bytes(memoryview(cache.serialize()))
        if data == self._stored:
            return
        self._stored = data
        if self._path is None:
            log.warning("compiled kernels are not kept: %s", self._reason)
            return
        folder = self._path.parent
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Marks the folder as part of our cache, so that it is counted, evicted and cleared like a prepared engine.
            (folder / "engine.json").write_text(json.dumps(self._identity), encoding="utf-8")
            temporary.write_bytes(data)
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            reason = error.strerror or error
            log.warning(
                "compiled kernels are not kept in '%s': %s; set EBCA_CACHE_DIR to a writable folder", folder, reason
            )


class _Opened:
    """A loaded plan, and its runtime cache."""

    def __init__(self, trt: Any, plan: Plan, engine: Any, file: RuntimeCache | None) -> None:
        self.plan = plan
        self.engine = engine
        self.file = file
        self.cache: Any = None
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context_from = strategy
        if file is not None:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Lazy specialisation would compile in the background and replace kernels of a recorded step.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            # The whole step is one graph already, and a graph cannot be launched inside another's capture.
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.cache = config.create_runtime_cache()
            file.load(self.cache)
            config.set_runtime_cache(self.cache)
            self._context_from = config

    def context(self) -> Any:
        """A new execution context, which gets its scratch memory from the caller."""
        return self.engine.create_execution_context(self._context_from)


class TensorRTRunner:
    """One component. Each binding has its own execution context; they may share scratch memory, since they run one
    after the other on one stream."""

    def __init__(self, backend: TensorRTBackend, name: str) -> None:
        self._backend = backend
        self._name = name

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        return int(self._load(inputs).engine.device_memory_size_v2)

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        """See `ebca.engines.backends.protocol.Runner`. Raises BackendError or EngineError if no plan fits."""
        opened = self._load(inputs)
        context, file = opened.context(), opened.plan.file
        for name, array in inputs.items():
            if name in opened.plan.inputs and not context.set_input_shape(name, tuple(array.shape)):
                raise BackendError(f"'{file}' does not take '{name}' of shape {list(array.shape)}", "export again")
        for name, array in (*inputs.items(), *outputs.items()):
            if not context.set_tensor_address(name, address(array)):
                raise BackendError(
                    f"'{file}' does not take '{name}' at address {address(array):#x}", "please report it"
                )
        if size := int(opened.engine.device_memory_size_v2):
            context.set_device_memory(workspace, size)
        self._backend.check_capturable(context, file)
        enqueue, keep = self._backend.enqueue(context, file), (dict(inputs), dict(outputs))

        def call(_keep: object = keep) -> None:
            enqueue()

        return call

    def _load(self, inputs: Arrays) -> _Opened:
        return self._backend.load(self._name, {name: tuple(array.shape) for name, array in inputs.items()})
