"""Building TensorRT plans: strongly typed, with scratch memory from the caller, so that a run can be captured.

TensorRT for RTX builds for GPUs that need not be in this machine, and compiles the rest when a plan first runs on one.
TensorRT itself measures kernels on this machine's GPU and builds for that one only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ebca.engines.backends.tensorrt_library import RTX, load_library, logger, supported_capabilities, version_key
from ebca.engines.machine import nvidia
from ebca.errors import BackendError, ExportError, ParameterError
from ebca.plugins.energy_attention import tensorrt_plugin
from ebca.plugins.energy_attention.launches import EnergyAttention
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary

# What TensorRT for RTX is made for: GPUs of the Ampere, Ada and Blackwell generations with RT cores.
DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
# Builds for these cannot be joined with others in one plan.
_ALONE = ("7.5",)

OnFraction = Callable[[float], None]
"""Called with the part of a build that is done, 0 to 1. An exception that it raises cancels the build."""


def check_capabilities(library: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted; the default ones if none is wanted.

    Raises:
        ParameterError: one cannot be built for, or not together with the others.
    """
    if library != RTX:
        if wanted:
            raise ParameterError(f"{library} builds for this machine's GPU only", "leave --compute-capability out")
        return ()
    chosen = tuple(sorted(set(wanted or DEFAULT_CAPABILITIES), key=version_key))
    known = supported_capabilities(library)
    for capability in chosen:
        if capability not in known:
            raise ParameterError(
                f"{library} builds nothing for compute capability '{capability}', only for {', '.join(known)}",
                "export with --backend onnxruntime-cuda for other GPUs",
            )
        if capability in _ALONE and len(chosen) > 1:
            raise ParameterError(
                f"{library} builds for compute capability {capability} alone, not together with others",
                "make a directory for it",
            )
    return chosen


@dataclass(frozen=True)
class InputRange:
    """Smallest, best and largest shape of one input."""

    smallest: tuple[int, ...]
    best: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def fixed(self) -> tuple[int, ...]:
        """The shape with -1 for sizes that vary."""
        sizes = zip(self.smallest, self.largest, strict=True)
        return tuple(low if low == high else -1 for low, high in sizes)


@dataclass(frozen=True)
class Built:
    """A plan, and its tensors as the library reports them: name -> (dtype, shape), -1 for a size that varies."""

    plan: memoryview
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


class Builder:
    """Builds the plans of one library.

    Args:
        library: see LIBRARIES.
        capabilities: as `check_capabilities` returns them.
        with_op: graphs contain energy cross attention, which is a plugin.

    Raises:
        BackendError: the library is missing, takes no plugins, or needs a GPU and finds none.
    """

    def __init__(self, library: str, capabilities: Sequence[str] = (), *, with_op: bool = False) -> None:
        self._trt = load_library(library)
        self._library = library
        self._capabilities = tuple(capabilities)
        self._log = logger(self._trt)
        try:
            self._builder = self._trt.Builder(self._log)
        except (RuntimeError, TypeError):
            reason = self._log.first or "no GPU"
            raise BackendError(
                f"{library} builds on the GPU that will run the plans, and found none here ({reason})",
                "build there, or use --backend tensorrt-rtx",
            ) from None
        if with_op:
            # TensorRT builds on the first GPU. The creator must live as long as the builder.
            kernels = EnergyAttention(KernelLibrary(CudaLauncher(0)))
            self._creator = tensorrt_plugin.register(self._trt, self._builder.get_plugin_registry(), kernels)

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
        self._log.forget()
        network = self._parse(graph)
        config = self._config(network, inputs)
        monitor = _monitor(self._trt, on_fraction)
        config.progress_monitor = monitor
        inputs_built = _tensors(network.get_input, network.num_inputs)
        outputs_built = _tensors(network.get_output, network.num_outputs)
        plan = self._builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if plan is None:
            raise self._failed(graph, "")
        return Built(memoryview(plan), inputs_built, outputs_built)

    def _parse(self, graph: Path) -> Any:
        """The graph as a strongly typed network."""
        trt = self._trt
        strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(graph)):
            raise self._failed(graph, parser.get_error(0).desc() if parser.num_errors else "")
        _allow_plain_attention(trt, network)
        return network

    def _config(self, network: Any, inputs: Mapping[str, InputRange]) -> Any:
        """Scratch memory from the caller, the target GPUs, and the ranges of inputs."""
        trt = self._trt
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
        return config

    def own_capability(self) -> str:
        """The compute capability of the GPU that a library without targets builds for."""
        return nvidia.find().gpus[0].compute_capability

    def _failed(self, graph: Path, reason: str) -> ExportError:
        line = (reason or self._log.first or "it gives no reason").splitlines()[0]
        return ExportError(
            f"{self._library} {self.version} cannot build '{graph.name}': {line}", "please report the model"
        )


def _allow_plain_attention(trt: ModuleType, network: Any) -> None:
    """Let an attention without a fused kernel (of a small head, or with a mask) be built from several."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            # The bindings return every layer as its base class, and this is how they convert to the real one.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _tensors(get: Callable[[int], Any], count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: (_dtype(t.dtype), tuple(t.shape)) for t in (get(index) for index in range(count))}


def _dtype(dtype: Any) -> str:
    return {"float": "float32", "half": "float16"}.get(name := str(dtype).rpartition(".")[2].lower(), name)


def _monitor(trt: ModuleType, on_fraction: OnFraction | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Progress of the outermost phase. An exception ends the build and is kept: it cannot pass through C++."""

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
