"""TensorRT: plans built ahead of time, opened on a GPU. One module for TensorRT for RTX and for TensorRT.

Building (`Builder`) belongs to the export. TensorRT for RTX builds for GPUs that are not there: it compiles the rest
when a plan is first run on one, and keeps that in a runtime cache. TensorRT itself measures kernels on the GPU at hand
and builds for that one only.

Running (`TensorRTBackend`): addresses are the caller's, scratch memory is one block shared by all plans, and nothing is
allocated while a step is enqueued, so that the caller may capture it into a CUDA graph. Needs an NVIDIA GPU; it has not
been run on one yet.
"""

import hashlib
import importlib
import json
import os
import platform as host
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ebca.engines import nvidia
from ebca.engines.cache import cache_folder
from ebca.engines.plans import LibraryPlans
from ebca.errors import BackendError, ExportError, ParameterError

RTX = "tensorrt-rtx"
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
}
"""Library -> modules it may be installed as."""

# What TensorRT for RTX is made for: GPUs of the Ampere, Ada and Blackwell generations with RT cores.
DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
# Builds for these cannot be joined with others in one plan.
_ALONE = ("7.5",)
_MINIMUM_RTX = (1, 7)

OnFraction = Callable[[float], None]
"""Called with the part of a build that is done, 0 to 1. An exception that it raises cancels the build."""

Allocate = Callable[[int], int]
"""Bytes -> address of device memory that lives as long as the engine, aligned to 256 bytes."""


def installed(library: str) -> bool:
    """Whether the library is there, without loading it."""
    return any(find_spec(name) is not None for name in LIBRARIES[library])


def load_library(library: str) -> ModuleType:
    """The Python module of a library.

    Raises:
        BackendError: it is not installed, too old, or cannot be loaded.
        ParameterError: unknown library.
    """
    if library not in LIBRARIES:
        raise ParameterError(f"library '{library}' is unknown; choose one of {', '.join(LIBRARIES)}")
    remedy = 'run `pip install "ebca[tensorrt-rtx]"`' if library == RTX else "run `pip install tensorrt`"
    name = next((name for name in LIBRARIES[library] if find_spec(name) is not None), None)
    if name is None:
        raise BackendError(f"{library} is not installed; {remedy}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{library} cannot be loaded ({str(error).splitlines()[0]}); {remedy}") from None
    numbers = tuple(int(n) for n in re.findall(r"\d+", module.__version__)[:2])
    if library == RTX and numbers < _MINIMUM_RTX:
        raise BackendError(f"{library} is version {module.__version__}, 1.7 or newer is needed; {remedy}")
    return module


def platform_name() -> str:
    """Operating system and processor, as plans record them."""
    return f"{host.system().lower()}-{host.machine().lower()}"


def supported_capabilities(library: str) -> tuple[str, ...]:
    """What `Builder` can be asked for; empty for TensorRT, which builds for the GPU at hand."""
    if library != RTX:
        return ()
    names = (name for name in dir(load_library(library).ComputeCapability) if re.fullmatch(r"SM\d+", name))
    return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=_version_key))


def check_capabilities(library: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted; the default where none is wanted.

    Raises:
        ParameterError: one cannot be built for, or not together with the others.
    """
    if library != RTX:
        if wanted:
            raise ParameterError(f"{library} builds for the GPU at hand only; leave --compute-capability out")
        return ()
    chosen = tuple(sorted(set(wanted or DEFAULT_CAPABILITIES), key=_version_key))
    known = supported_capabilities(library)
    for capability in chosen:
        if capability not in known:
            raise ParameterError(
                f"{library} builds nothing for compute capability '{capability}', only for {', '.join(known)}; "
                "export with --backend onnxruntime-cuda for other GPUs"
            )
        if capability in _ALONE and len(chosen) > 1:
            raise ParameterError(
                f"{library} builds for compute capability {capability} by itself only; make a directory for it alone"
            )
    return chosen


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(n) if n.isdecimal() else -1 for n in text.split("."))


@dataclass(frozen=True)
class InputRange:
    """Smallest, best and largest shape of one input."""

    smallest: tuple[int, ...]
    best: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def fixed(self) -> tuple[int, ...]:
        """The shape with -1 where it varies."""
        return tuple(
            low if low == high else -1 for low, high in zip(self.smallest, self.largest, strict=True)
        )  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A plan, and what the library itself says of its tensors: name to (dtype, shape), -1 where a size varies."""

    plan: memoryview
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


class Builder:
    """Builds plans. Strongly typed, with scratch memory that the caller provides, so that a run can be captured.

    Args:
        library: see LIBRARIES.
        capabilities: as `check_capabilities` gives them.

    Raises:
        BackendError: the library is missing, or needs a GPU that is not there.
    """

    def __init__(self, library: str, capabilities: Sequence[str] = ()) -> None:
        self._trt = load_library(library)
        self._library = library
        self._capabilities = tuple(capabilities)
        self._log = _logger(self._trt)
        try:
            self._builder = self._trt.Builder(self._log)
        except (RuntimeError, TypeError):
            reason = self._log.first or "no GPU"
            raise BackendError(
                f"{library} builds on the GPU that will run the plans, and found none here ({reason}); "
                "build there, or use --backend tensorrt-rtx"
            ) from None

    @property
    def version(self) -> str:
        return str(self._trt.__version__)

    def build(self, graph: Path, inputs: Mapping[str, InputRange], on_fraction: OnFraction | None = None) -> Built:
        """Build one plan.

        Args:
            graph: ONNX file that computes in the types it names, weights beside it.
            inputs: every input's range.

        Raises:
            ExportError: the library cannot build it.
            Exception: whatever `on_fraction` raised.
        """
        trt = self._trt
        self._log.forget()
        strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(graph)):
            raise self._failed(graph, parser.get_error(0).desc() if parser.num_errors else "")
        _allow_plain_attention(trt, network)
        config = self._builder.create_builder_config()
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if self._capabilities:
            config.num_compute_capabilities = len(self._capabilities)
            for index, capability in enumerate(self._capabilities):
                target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
                config.set_compute_capability(target, index)
        profile = self._builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            wanted = inputs[tensor.name]
            tensor.shape = wanted.fixed
            if -1 in wanted.fixed:
                profile.set_shape(tensor.name, wanted.smallest, wanted.best, wanted.largest)
        config.add_optimization_profile(profile)
        monitor = _monitor(trt, on_fraction)
        config.progress_monitor = monitor
        tensors = [
            {t.name: (_dtype(t.dtype), tuple(t.shape)) for t in (get(i) for i in range(count))}
            for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
        ]
        plan = self._builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if plan is None:
            raise self._failed(graph, "")
        return Built(memoryview(plan), *tensors)

    def own_capability(self) -> str:
        """Of the GPU that a library without targets builds for."""
        return nvidia.find().gpus[0].compute_capability

    def _failed(self, graph: Path, reason: str) -> ExportError:
        line = (reason or self._log.first or "it gives no reason").splitlines()[0]
        return ExportError(
            f"{self._library} {self.version} cannot build '{graph.name}': {line}; please report the model"
        )


def _allow_plain_attention(trt: ModuleType, network: Any) -> None:
    """Let an attention without a fused kernel (of a small head, or with a mask) be built from several."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            # The bindings give every layer as its base class, and this is their way to the real one.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _dtype(dtype: Any) -> str:
    return {"float": "float32", "half": "float16"}.get(name := str(dtype).rpartition(".")[2].lower(), name)


def _logger(trt: ModuleType) -> Any:
    class Log(trt.ILogger):  # type: ignore[name-defined]
        """Keeps the first error; says nothing itself."""

        def __init__(self) -> None:
            super().__init__()
            self.first = ""

        def forget(self) -> None:
            self.first = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and not self.first:
                self.first = message.strip().splitlines()[0]

    return Log()


def _monitor(trt: ModuleType, on_fraction: OnFraction | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """The outermost phase's progress; an exception ends the build and is kept, for it cannot pass through C++."""

        def __init__(self) -> None:
            super().__init__()
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.error is None and on_fraction is not None:
                try:
                    if phase_name in self._steps:
                        on_fraction((step + 1) / self._steps[phase_name])
                except BaseException as error:
                    self.error = error
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


# --- running


def check_target(plans: LibraryPlans, library: str, gpu: nvidia.Gpu, version: str) -> None:
    """Whether plans may run here, as far as their manifest tells.

    Raises:
        BackendError: another GPU, platform or version; the message says what to do.
    """
    again = "export the engine again here, or with --backend onnxruntime-cuda"
    if plans.platform != platform_name():
        raise BackendError(
            f"this engine directory's plans are for {plans.platform}, this is {platform_name()}; {again}"
        )
    if gpu.compute_capability not in plans.compute_capabilities:
        raise BackendError(
            f"this engine directory targets compute capability {' and '.join(plans.compute_capabilities)}, "
            f"{gpu.name} is {gpu.compute_capability}; " + _remedy(library, gpu.compute_capability)
        )
    if plans.version != version:
        raise BackendError(
            f"the plans were built with {library} {plans.version}, {version} is installed; "
            f"run `pip install {library}=={plans.version}`, or export again"
        )


def _remedy(library: str, capability: str) -> str:
    if library == RTX and installed(RTX) and capability in supported_capabilities(RTX):
        return f"export again with --compute-capability {capability}"
    return "export again with --backend onnxruntime-cuda"


class Scratch:
    """One block of device memory that all plans share: they run one after the other, on one stream.

    A plan that needs more than there is gets a larger block; a recorded step keeps the one it was bound to.

    Args:
        allocate: the blocks belong to the caller.
    """

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self._block = (0, 0)

    def reserve(self, nbytes: int) -> tuple[int, int]:
        """(address, size) of a block of `nbytes` or more; (0, 0) where none is needed."""
        if nbytes > self._block[1]:
            self._block = (self._allocate(nbytes), nbytes)
        return self._block


class TensorRTBackend:
    """Opens plans on one GPU. A CUDA context must be current in the calling thread. Not run on a GPU yet.

    Args:
        plans: the manifest's entry for the library.
        gpu: what they run on.
        scratch: shared by all plans that run on one stream.
        library: see LIBRARIES.
        module: stands in for the library in tests.

    Raises:
        BackendError: the library is missing, or the plans are for another GPU, platform or version.
    """

    def __init__(
        self,
        plans: LibraryPlans,
        gpu: nvidia.Gpu,
        scratch: Scratch,
        library: str = RTX,
        module: Any = None,
    ) -> None:
        self.name = library
        self._trt = module or load_library(library)
        check_target(plans, library, gpu, str(self._trt.__version__))
        self._gpu = gpu
        self._scratch = scratch
        self._log = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._runners: list[TensorRTRunner] = []

    def identity(self) -> dict[str, str]:
        """What a runtime cache depends on beside its plan."""
        return {
            self.name: str(self._trt.__version__),
            "gpu": self._gpu.name,
            "capability": self._gpu.compute_capability,
        }

    def open(self, plan: Path) -> "TensorRTRunner":
        """Load a plan, whose contents the caller has verified.

        Raises:
            BackendError: the library refuses it; the message says why.
        """
        data = plan.read_bytes()
        self._check(plan, data)
        self._log.forget()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"{self.name} cannot open '{plan.name}': {self._log.first}; export the engine again")
        cache = RuntimeCache(self._cache_file(data)) if self.name == RTX else None
        runner = TensorRTRunner(self._trt, engine, plan.name, self._scratch, cache)
        self._runners.append(runner)
        return runner

    def save_caches(self) -> None:
        """Keep what was compiled for this GPU, so that the next process need not; call it after a first step."""
        for runner in self._runners:
            runner.save_cache()

    def cache_folder(self) -> Path:
        """Of the runtime caches, in the user's cache: one per library version and GPU."""
        key = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:24]
        return cache_folder() / f"{self.name}-{key}"

    def _cache_file(self, plan: bytes) -> Path:
        folder = self.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # What bounds and clears the cache of prepared engines takes a folder with this file for one.
        (folder / "engine.json").write_text(json.dumps(self.identity()), encoding="utf-8")
        return folder / f"{hashlib.sha256(plan).hexdigest()[:24]}.cache"

    def _check(self, plan: Path, data: bytes) -> None:
        """Ask the library about the plan's header, which takes no time, before it loads the whole."""
        check = getattr(self._runtime, "get_engine_validity", None)
        if check is None:
            return
        validity, diagnostics = check(data[: self._runtime.engine_header_size])
        if validity == self._trt.EngineValidity.INVALID:
            raise BackendError(f"{self.name} refuses '{plan.name}': {reasons(self._trt, int(diagnostics))}")


_REASONS = {
    "VERSION_MISMATCH": ("it was built with another version", "install that one, or export the engine again"),
    "UNSUPPORTED_CC": ("it was not built for this GPU", "export again with its --compute-capability"),
    "OLD_CUDA_DRIVER": ("the NVIDIA driver is too old", "update the driver"),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old", "update CUDA"),
    "INSUFFICIENT_GPU_MEMORY": ("the GPU has too little memory", "close other programs"),
    "MALFORMED_ENGINE": ("it is not a plan of this library", "export the engine again"),
    "CUDA_ERROR": ("CUDA does not work here", "check the driver with `nvidia-smi`"),
}


def reasons(trt: Any, diagnostics: int) -> str:
    """The bits of EngineInvalidityDiagnostics in words, and what to do about the first."""
    found = [
        words
        for name, words in _REASONS.items()
        if (bit := getattr(trt.EngineInvalidityDiagnostics, name, None)) is not None and diagnostics & int(bit)
    ]
    if not found:
        return f"diagnostics {diagnostics}; export the engine again"
    return f"{', '.join(words for words, _ in found)}; {found[0][1]}"


class RuntimeCache:
    """The file that holds what a plan's kernels were compiled to on this GPU."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = b""

    def load(self, cache: Any) -> bool:
        """Fill the library's cache from the file. False where there is none or the library does not take it: then it
        compiles again, and `save` replaces the file."""
        try:
            self._stored = self._path.read_bytes()
        except OSError:
            return False
        if not cache.deserialize(self._stored):
            self._stored = b""
        return bool(self._stored)

    def save(self, cache: Any) -> None:
        """Write the file where its contents have changed."""
        data = bytes(memoryview(cache.serialize()))
        if data == self._stored:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(self._path)
        self._stored = data


class TensorRTRunner:
    """An opened plan. Each binding has its own execution context; all of them share the scratch memory, so that they
    run one after the other on one stream."""

    def __init__(self, trt: Any, engine: Any, name: str, scratch: Scratch, cache: RuntimeCache | None) -> None:
        self._trt = trt
        self._engine = engine
        self._name = name
        self._scratch = scratch
        self._file = cache
        self._config: Any = None
        self._cache: Any = None
        if cache is not None:
            self._config = engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            # Lazy specialisation would compile in the background and switch kernels under a recorded step.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self._cache = self._config.create_runtime_cache()
            cache.load(self._cache)
            self._config.set_runtime_cache(self._cache)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run needs beside its tensors."""
        return int(self._engine.device_memory_size_v2)

    def save_cache(self) -> None:
        """Write the runtime cache to its file."""
        if self._file is not None:
            self._file.save(self._cache)

    def bind(self, pointers: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> "TensorRTBinding":
        """Fix the device addresses of all tensors; the result enqueues one run.

        Args:
            pointers: every tensor's address. The memory is the caller's and must outlive the result.
            shapes: every input's shape.

        Raises:
            BackendError: a shape outside the plan's range, or a tensor without an address.
        """
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
        else:
            context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if name not in pointers:
                raise BackendError(
                    f"'{self._name}' needs a tensor '{name}', which has no address; export the engine again"
                )
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                shape = tuple(shapes[name])
                if not context.set_input_shape(name, shape):
                    what = f"'{self._name}' was not built for '{name}' of shape {list(shape)}"
                    raise BackendError(f"{what}; export again with that --shape")
            context.set_tensor_address(name, pointers[name])
        address, size = self._scratch.reserve(self.scratch_bytes)
        if size:
            context.set_device_memory(address, size)
        return TensorRTBinding(context, self._name)


class TensorRTBinding:
    """A plan with fixed addresses."""

    def __init__(self, context: Any, name: str) -> None:
        self._context = context
        self._name = name

    def __call__(self, stream: int) -> None:
        """Enqueue one run on a CUDA stream, given by its handle; nothing waits for it. Raises BackendError."""
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"'{self._name}' failed on the GPU; run `ebca-doctor --engine DIR`")

    def capturable(self, stream: int) -> bool:
        """Whether a run on this stream may be captured into a CUDA graph."""
        check = getattr(self._context, "is_stream_capturable", None)
        return check is None or bool(check(stream))
