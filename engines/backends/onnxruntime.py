"""ONNX Runtime on the CPU: the default backend, always installed.

`prepare` lets ONNX Runtime optimise a graph once and saves the result with weights packed for this processor. `open`
maps that file with optimisations off, which takes tens of milliseconds and no memory of its own. All sessions share one
memory arena, so seventeen segments need the scratch memory of one.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ebca.engines.backends.protocol import Arrays, BackendOptions, Call, PreparingBackend
from ebca.engines.contract.manifest import Component
from ebca.engines.machine import processor
from ebca.engines.machine.memory import address
from ebca.errors import BackendError

_CPU = ["CPUExecutionProvider"]

# ONNX Runtime writes weights one after the other without padding and maps the file unchanged. A small constant of odd
# size then moves all later weights off the boundary that vector loads need, and the process crashes at the first run.
# Constants below a threshold go into the graph file instead; thresholds are tried until all packed weights are aligned.
_EXTERNAL_FROM_BYTES = (16 << 10, 1 << 20)
_ALIGNMENT = 64
_PACKED = re.compile(rb"\|(\d+);\d+;\d+")
# ONNX Runtime formats these numbers as the global C++ locale of the process says ("50,176;1,024;0"), which a host or an
# extension module may have chosen, and reads only "50176;1024;0". A digit of the key or of another weight comes before.
_NUMBER = rb"\d(?:[^\d;|]?\d)*"
_GROUPED = re.compile(rb"(?<=\d\|)" + _NUMBER + rb";" + _NUMBER + rb"(?=;\d)", re.DOTALL)


# The arena belongs to ONNX Runtime's process-wide environment, where it can be registered only once. (A thread pool can
# be shared there too, but every other session of the host process would then have to use it.)
@cache
def _register_shared_arena() -> None:
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Grow by the requested size only: doubling would reserve gigabytes for the largest layer.
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, 1, -1, -1))


def create(options: BackendOptions) -> "OnnxRuntimeBackend":
    """Raises BackendError for a precision other than fp32."""
    return OnnxRuntimeBackend(options)


class OnnxRuntimeBackend(PreparingBackend):
    """See the module docstring. Raises BackendError for a precision other than fp32."""

    name = "onnxruntime"

    def __init__(self, options: BackendOptions) -> None:
        if options.precision != "fp32":
            raise BackendError(
                f"precision '{options.precision}' is not available with onnxruntime on CPU",
                "use `--backend openvino` or precision fp32",
            )
        self._threads = options.threads or processor.physical_cores()
        _register_shared_arena()

    def identity(self) -> dict[str, str]:
        # The build too: it decides how weights are packed, and distributions build the same version differently.
        return {"onnxruntime": ort.__version__, "build": ort.get_build_info(), "processor": processor.identity()}

    def growth(self, precision: str) -> float:
        # Weights are widened to float32. Those of matrix products are stored twice, packed too; others are not.
        return super().growth(precision) * (2 if precision == "fp16" else 1)

    def prepare(self, graph: Path, target: Path) -> None:
        for threshold in _EXTERNAL_FROM_BYTES:
            self._optimise(graph, target, threshold, packed=True)
            _ungroup_packed_numbers(target)
            if _packed_weights_are_aligned(target):
                return
        self._optimise(graph, target, _EXTERNAL_FROM_BYTES[0], packed=False)

    def _optimise(self, graph: Path, target: Path, threshold: int, *, packed: bool) -> None:
        weights = target.with_name(target.name + ".data")
        weights.unlink(missing_ok=True)
        options = self._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(target)
        entries = {
            "session.optimized_model_external_initializers_file_name": weights.name,
            "session.optimized_model_external_initializers_min_size_in_bytes": str(threshold),
            "session.save_external_prepacked_constant_initializers": "1" if packed else "0",
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        self._session(graph, options)

    def open(
        self, prepared: Path, component: Component, dimensions: Mapping[str, int] | None = None
    ) -> "OnnxRuntimeRunner":
        options = self._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.use_env_allocators", "1")
        return OnnxRuntimeRunner(self._session(prepared, options))

    def _options(self) -> Any:
        options = ort.SessionOptions()
        # Every error is an exception too, which says it once.
        options.log_severity_level = 4
        # A memory pattern reserves each session's peak as one block, and the shared arena would keep all of them.
        options.enable_mem_pattern = False
        options.intra_op_num_threads = self._threads
        # The next segment starts at once: threads of the previous one must not spin meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    @staticmethod
    def _session(path: Path, options: Any) -> Any:
        try:
            return ort.InferenceSession(str(path), options, providers=_CPU)
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            raise BackendError(f"onnxruntime {ort.__version__} cannot open '{path}': {line}") from None


class OnnxRuntimeRunner:
    """An opened session. Each binding has its own I/O binding, so bindings of one runner may run in different threads.

    Args:
        session: an `onnxruntime.InferenceSession`.
        device, index: where its arrays are, in ONNX Runtime's names.
        run_options: used for every run.
    """

    def __init__(self, session: Any, device: str = "cpu", index: int = 0, run_options: Any = None) -> None:
        self._session = session
        self._place = device, index
        self._run_options = run_options

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        return 0

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        binding = self._session.io_binding()
        read = {i.name for i in self._session.get_inputs()}
        for name, array in inputs.items():
            # An input that no operator reads may have been optimised away.
            if name in read:
                binding.bind_input(name, *self._place, array.dtype, array.shape, address(array))
        for name, array in outputs.items():
            binding.bind_output(name, *self._place, array.dtype, array.shape, address(array))
        keep = dict(inputs), dict(outputs)
        # On a GPU, recorded work still uses what the arena has given it.
        options = _giving_back() if once and self._place[0] == "cpu" else self._run_options

        def call(_keep: object = keep) -> None:
            self._run(binding, options)

        return call

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._memory_error(error) from None
            raise

    def _memory_error(self, error: Exception) -> Exception:
        """What to raise if the library had too little memory."""
        return MemoryError(str(error).strip().splitlines()[0])


def _giving_back() -> Any:
    """Options of a run that leaves no unused memory in the arena, such as the gigabytes that a decoder needs."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime says that memory is short."""
    text = str(error)
    words = ("Failed to allocate memory", "out of memory", "Available memory of", "bad allocation", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _ungroup_packed_numbers(model: Path) -> None:
    """Put numbers that are formatted for a locale right, in place: zeros in front keep their length, so that nothing
    else of the graph moves."""
    written = model.read_bytes()
    right = _GROUPED.sub(lambda found: b";".join(map(_digits, found[0].split(b";"))), written)
    if right != written:
        model.write_bytes(right)


def _digits(number: bytes) -> bytes:
    return re.sub(rb"\D", b"", number).rjust(len(number), b"0")


def _packed_weights_are_aligned(model: Path) -> bool:
    """Whether all packed weights of an optimised graph ("key|offset;length;flag") can be used where they are mapped."""
    return all(int(offset) % _ALIGNMENT == 0 for offset in _PACKED.findall(model.read_bytes()))
