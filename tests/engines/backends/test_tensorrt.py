"""Opening plans with a stand-in for TensorRT: everything that needs no GPU."""

import enum
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ebca.engines.backends import tensorrt_library
from ebca.engines.backends.gpu_target import GpuTarget
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create_on_gpu
from ebca.engines.backends.tensorrt import RuntimeCache, TensorRTBackend
from ebca.engines.backends.tensorrt_library import RTX, check_target, load_library, runtime_cache
from ebca.engines.contract.manifest import Component
from ebca.engines.contract.plans import LibraryPlans, Plan, Range, resolve
from ebca.engines.contract.tensors import TensorSpec
from ebca.engines.machine.memory import DeviceArray
from ebca.engines.machine.nvidia import Gpu
from ebca.errors import BackendError, EngineError, ParameterError

ADA = Gpu("RTX 4090", "8.9", 24 << 30)
AMPERE = Gpu("A100", "8.0", 80 << 30)
HOPPER = Gpu("H100", "9.0", 80 << 30)
VERSION = "1.7.1.116"
X = {"x": TensorSpec("float16", ("batch", 8))}
STREAM = 77


class Library:
    """The parts of tensorrt_rtx 1.7 that `TensorRTBackend` uses."""

    __version__ = VERSION

    class ILogger:
        ERROR = 1

    class EngineValidity(enum.Enum):
        VALID = 0
        INVALID = 2

    class EngineInvalidityDiagnostics(enum.IntFlag):
        VERSION_MISMATCH = 1
        UNSUPPORTED_CC = 2
        CUDA_ERROR = 64

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="off")

    def __init__(self) -> None:
        self.diagnostics = 0
        self.refuses = ""
        self.capturable = True
        self.engines: list[Engine] = []

    def Runtime(self, log: Any) -> Any:
        self.registry = object()

        def validity(header: bytes) -> tuple[Any, int]:
            assert len(header) == 4
            kind = self.EngineValidity.INVALID if self.diagnostics else self.EngineValidity.VALID
            return kind, self.diagnostics

        def deserialize(data: bytes) -> Any:
            if self.refuses:
                log.log(1, self.refuses)
                return None
            self.engines.append(Engine(self, data))
            return self.engines[-1]

        return SimpleNamespace(
            engine_header_size=4, get_engine_validity=validity, deserialize_cuda_engine=deserialize,
            get_plugin_registry=lambda: self.registry,
        )  # fmt: skip


class Cache:
    """A runtime cache that accepts data beginning with "good"."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, data: bytes) -> bool:
        if taken := data.startswith(b"good"):
            self.content = data
        return taken

    def serialize(self) -> bytes:
        return self.content or b"good, compiled"


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, library: Library, data: bytes) -> None:
        self.library = library
        self.data = data
        self.config: Any = None
        self.contexts: list[Context] = []

    def create_runtime_config(self) -> Any:
        self.config = SimpleNamespace(cache=Cache())
        self.config.create_runtime_cache = lambda: self.config.cache
        self.config.set_runtime_cache = lambda cache: None
        self.config.set_execution_context_allocation_strategy = lambda s: setattr(self.config, "allocation", s)
        return self.config

    def create_execution_context(self, config: Any) -> Any:
        assert config is self.config
        self.contexts.append(Context(self.library))
        return self.contexts[-1]


class Context:
    def __init__(self, library: Library) -> None:
        self.library = library
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.ran: list[int] = []
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.library.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.ran.append(stream)
        return self.works


def plans(**changes: Any) -> LibraryPlans:
    def one(file: str, batch: Range) -> Plan:
        return Plan(file, {"batch": batch}, resolve(X, {"batch": batch}), resolve({"y": X["x"]}, {"batch": batch}))

    entries = (one("two.plan", (2, 2, 2)), one("more.plan", (4, 4, 8)))
    facts = {"version": VERSION, "compute_capabilities": ("8.6", "8.9"), "platform": tensorrt_library.platform_name()}
    return LibraryPlans(**{**facts, **changes}, shapes=(), components={"segment_00": entries})


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("two.plan", "more.plan"):
        (tmp_path / name).write_bytes(b"plan " + name.encode())
    manifest = SimpleNamespace(
        plans={RTX: plans()},
        components={"segment_00": Component("s.onnx", X, {"y": X["x"]}), "op": Component("op.onnx", X, {})},
        files={name: SimpleNamespace(sha256=name * 6) for name in ("two.plan", "more.plan")},
    )
    verified: list[str] = []
    return SimpleNamespace(
        path=tmp_path, manifest=manifest, verified=verified, verify=verified.extend, file=lambda name: tmp_path / name
    )


def array(pointer: int, rows: int = 2) -> DeviceArray:
    return DeviceArray(pointer, (rows, 8), np.dtype(np.float16))


def target(directory: Any, library: str = RTX) -> GpuTarget:
    return GpuTarget(library, directory, ADA, 0, STREAM)


def opened(directory: Any, library: Library) -> Any:
    backend = TensorRTBackend(target(directory), module=library)
    return backend, backend.open(directory.path / "s.onnx", directory.manifest.components["segment_00"])


# --- running


def test_a_call_runs_the_plan_at_its_addresses_on_the_stream(directory: Any) -> None:
    library = Library()
    _, runner = opened(directory, library)
    assert not library.engines
    tensors = {"x": array(1000)}, {"y": array(2000)}
    assert runner.workspace_bytes(*tensors) == 4096
    call = runner.bind(*tensors, workspace=512)
    (engine,) = library.engines
    assert engine.data == b"plan two.plan" and directory.verified == ["two.plan"]
    (context,) = engine.contexts
    assert context.shapes == {"x": (2, 8)} and context.addresses == {"x": 1000, "y": 2000}
    assert context.scratch == (512, 4096) and context.ran == []
    call()
    call()
    assert context.ran == [STREAM, STREAM]
    config = engine.config
    assert (config.allocation, config.cuda_graph_strategy) == ("user", "off")
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    context.works = False
    with pytest.raises(BackendError, match=r"'two\.plan' failed on the GPU"):
        call()


def test_shapes_choose_the_plan_and_each_is_loaded_once(directory: Any) -> None:
    library = Library()
    _, runner = opened(directory, library)
    for rows in (2, 8, 2, 4):
        runner.bind({"x": array(1, rows)}, {"y": array(2, rows)})
    assert [engine.data for engine in library.engines] == [b"plan two.plan", b"plan more.plan"]
    assert [len(engine.contexts) for engine in library.engines] == [2, 2]
    with pytest.raises(EngineError, match=r"was built for batch 2 or batch 4 to 8, and is given x \[3, 8\]"):
        runner.bind({"x": array(1, 3)}, {"y": array(2, 3)})


def test_a_run_that_cannot_be_captured_warns_when_bound(directory: Any, caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    library.capturable = False
    _, runner = opened(directory, library)
    runner.bind({"x": array(1)}, {"y": array(2)})
    assert "'two.plan' cannot be recorded as a CUDA graph" in caplog.text


def test_a_refused_address_is_an_error(directory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, runner = opened(directory, Library())
    monkeypatch.setattr(Context, "set_tensor_address", lambda self, name, address: name != "y")
    with pytest.raises(BackendError, match=r"'two\.plan' does not take 'y' at address 0x2"):
        runner.bind({"x": array(1)}, {"y": array(2)})


def test_compiled_kernels_are_persisted_for_later_processes(directory: Any, tmp_path: Path) -> None:
    def bound() -> tuple[Any, Cache]:
        library = Library()
        backend, runner = opened(directory, library)
        runner.bind({"x": array(1)}, {"y": array(2)})
        return backend, library.engines[0].config.cache

    backend, cache = bound()
    assert cache.content == b""
    backend.flush_caches()
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder == runtime_cache(RTX, VERSION, ADA) != runtime_cache(RTX, VERSION, HOPPER)
    (file,) = folder.glob("*.cache")
    assert (folder / "engine.json").is_file() and file.read_bytes() == b"good, compiled"
    _, cache = bound()
    assert cache.content == b"good, compiled"
    file.write_bytes(b"of another driver")
    backend, cache = bound()
    assert cache.content == b""
    backend.flush_caches()
    assert file.read_bytes() == b"good, compiled"


def test_a_runtime_cache_is_written_only_if_it_changed(tmp_path: Path) -> None:
    file, cache = RuntimeCache(tmp_path / "x.cache", {}), Cache()
    assert not file.load(cache)
    file.save(cache)
    written = (tmp_path / "x.cache").stat().st_mtime_ns
    file.save(cache)
    assert (tmp_path / "x.cache").stat().st_mtime_ns == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.json", "x.cache"]


def test_a_runtime_cache_that_cannot_be_written_costs_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file" / "x.cache", ""), (None, "no home folder")):
        file, cache = RuntimeCache(path, {}, reason), Cache()
        assert not file.load(cache)
        for _ in range(2):
            file.save(cache)
    assert len(caplog.records) == 2
    assert "set EBCA_CACHE_DIR" in caplog.records[0].getMessage() and "no home" in caplog.records[1].getMessage()


@pytest.mark.parametrize("full_unet_with_updates", [None, "whole", "segment_00"])
def test_plugins_are_registered_with_the_runtime_if_a_plan_needs_them(
    directory: Any, monkeypatch: pytest.MonkeyPatch, full_unet_with_updates: str | None
) -> None:
    library, registered = Library(), []

    class Creator:
        """Lives as long as it is referenced."""

    def register(trt: Any, registry: Any) -> object:
        assert trt is library and registry is library.registry and not library.engines
        creator = Creator()
        registered.append(weakref.ref(creator))
        return creator

    monkeypatch.setattr("ebca.engines.backends.tensorrt.load_library", lambda name: library)
    directory.manifest.unet = SimpleNamespace(full_unet_with_updates=full_unet_with_updates)
    backend = create_on_gpu(None, directory, BackendOptions(), ADA, 0, STREAM, register)
    # Only the plan of the full UNet with updates holds plugins.
    assert len(registered) == (full_unet_with_updates == "segment_00")
    runner = backend.open(directory.path / "s.onnx", directory.manifest.components["segment_00"])
    runner.bind({"x": array(1)}, {"y": array(2)})
    gc.collect()
    assert all(creator() is not None for creator in registered)


# --- refusals


@pytest.mark.parametrize(
    ("diagnostics", "message"),
    [
        (1, "it was built with another version; install that one"),
        (2, "it was not built for this GPU; export again with its --compute-capability"),
        (3, "it was built with another version, it was not built for this GPU; install"),
        (1 << 20, r"gives no reason \(diagnostics 1048576\); check the driver"),
    ],
)
def test_diagnostics_of_the_library_are_explained(directory: Any, diagnostics: int, message: str) -> None:
    library = Library()
    library.diagnostics = diagnostics
    _, runner = opened(directory, library)
    with pytest.raises(BackendError, match=message):
        runner.workspace_bytes({"x": array(1)}, {"y": array(2)})


def test_a_plan_that_does_not_open_reports_the_first_line_of_the_library(directory: Any) -> None:
    library = Library()
    library.refuses = "Error Code 1: no\nmore"
    _, runner = opened(directory, library)
    with pytest.raises(BackendError, match=r"cannot open 'two\.plan': Error Code 1: no; export"):
        runner.workspace_bytes({"x": array(1)}, {"y": array(2)})


def test_a_component_without_a_plan_and_a_directory_without_plans(directory: Any) -> None:
    backend = TensorRTBackend(target(directory), module=Library())
    with pytest.raises(BackendError, match="'op' has no plan for tensorrt-rtx"):
        backend.open(directory.path / "op.onnx", directory.manifest.components["op"])
    with pytest.raises(BackendError, match="has no plans for tensorrt; export again with --backend tensorrt,"):
        TensorRTBackend(target(directory, "tensorrt"), module=Library())


def test_plans_for_another_gpu_version_or_platform_are_refused() -> None:
    check_target(plans(), RTX, ADA, VERSION)
    with pytest.raises(
        BackendError, match=r"targets compute capability 8\.6 and 8\.9, A100 is 8\.0; export again with --compute-cap"
    ):
        check_target(plans(), RTX, AMPERE, VERSION)
    with pytest.raises(
        BackendError, match=r"RTX cannot run on H100, which has compute capability 9\.0; use --backend onnxruntime-cuda"
    ):
        check_target(plans(), RTX, HOPPER, VERSION)
    with pytest.raises(
        BackendError, match=r"built with tensorrt-rtx 1\.6\.0, 1\.7\.1\.116 is installed; run `pip install"
    ):
        check_target(plans(version="1.6.0"), RTX, ADA, VERSION)
    with pytest.raises(BackendError, match=r"plans are for windows-amd64, this is .*; export the engine again here"):
        check_target(plans(platform="windows-amd64"), RTX, ADA, VERSION)


def test_missing_old_and_broken_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="library 'tensorrt-cpu' is unknown"):
        load_library("tensorrt-cpu")
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'tensorrt-rtx is not installed; run `pip install "ebca\[tensorrt-rtx\]"`'):
        load_library(RTX)
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: name)
    old = SimpleNamespace(__version__="1.6.2")
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda name: old)
    with pytest.raises(BackendError, match=r"is version 1\.6\.2, 1\.7 or newer is needed"):
        load_library(RTX)

    def broken(name: str) -> Any:
        raise OSError("libtensorrt_rtx.so.1: cannot open\nmore")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"cannot be loaded \(libtensorrt_rtx\.so\.1: cannot open\); run"):
        load_library(RTX)
