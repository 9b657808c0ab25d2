"""Checks of the installation and of this machine."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec

import psutil

from ebca.engines.backends import registry as backends
from ebca.engines.backends import tensorrt_library as tensorrt
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import GPU_BACKENDS
from ebca.engines.cache import storage
from ebca.engines.machine import cache_folder, nvidia, processor
from ebca.errors import BackendError, EbcaError, EngineError, ParameterError
from ebca.runtime.devices import requirements
from ebca.runtime.diagnostics.findings import Finding, explain, size_text, version_text
from ebca.version import __version__

_EXPORT_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "accelerate")
_WITHOUT_CACHE = "what it does not hold is prepared again by every process, in a temporary folder"
# A prepared SD 1.5 with its text encoder and VAE takes about 5 GB of disk.
_FREE_DISK_BYTES = 6e9


def check_environment(backend: str | None = None) -> Iterator[Finding]:
    """Check the installed packages, the backends, the processor, the memory, the GPUs and the cache.

    Args:
        backend: the backend to use; None: the default.
    """
    yield Finding("ok", "ebca", f"{__version__} on Python {platform.python_version()}, {platform.system()}")
    yield from _check_backends(None if backend in GPU_BACKENDS else backend)
    yield from _check_gpus(backend if backend in GPU_BACKENDS else None)
    yield from _check_processor()
    yield _check_memory()
    yield from _check_cache()
    yield _check_export_packages()


def clear_cache() -> tuple[int, int]:
    """Delete all prepared engines, and nothing else. Returns the number of bytes freed and the number of engines.

    Raises:
        EngineError: one cannot be deleted.
    """
    engines = storage.stored_engines()
    for engine in engines:
        try:
            shutil.rmtree(engine.folder)
        except OSError as error:
            raise EngineError(
                f"cannot delete '{error.filename or engine.folder}': {error.strerror or error}",
                "stop the program that uses it, or delete it manually",
            ) from None
    return sum(engine.size for engine in engines), len(engines)


def gpus() -> tuple[nvidia.Gpu, ...]:
    """The NVIDIA GPUs; none without a driver."""
    with suppress(BackendError):
        return nvidia.find().gpus
    return ()


def _check_backends(wanted: str | None) -> Iterator[Finding]:
    present = backends.available()
    for name in backends.CPU_BACKENDS:
        entry = backends.TABLE[name]
        if name in present:
            yield Finding("ok", name, version_text(name))
        else:
            level, adds = ("note", f"; it adds {entry.adds}") if entry.adds else ("problem", "")
            yield Finding(level, name, f"not installed{adds}", f"run `pip install {entry.install}`")
    try:
        chosen = backends.create(wanted, BackendOptions()).name
    except (EbcaError, ImportError, OSError) as error:
        text, remedy = explain(error)
        yield Finding("problem", "backend", text, remedy or "reinstall it")
        return
    if wanted:
        why = "as requested"
    elif len(present) > 1:
        why = "the default for fp32; openvino is the default for bf16; choose with --backend"
    else:
        why = "the only one installed"
    yield Finding("ok", "backend", f"{chosen}: {why}")
    yield _check_bf16(present)


def _check_bf16(present: Sequence[str]) -> Finding:
    if "openvino" not in present:
        remedy = f"run `pip install {backends.TABLE['openvino'].install}`"
        return Finding("note", "bf16", "needs openvino", remedy)
    try:
        backends.create("openvino", BackendOptions(precision="bf16"))
    except (EbcaError, ImportError, OSError):
        return Finding("note", "bf16", "this processor has neither AVX512-BF16 nor AMX", "use precision fp32")
    return Finding("ok", "bf16", "available: `--backend openvino --precision bf16` is faster, slightly less accurate")


def _check_gpus(wanted: str | None) -> Iterator[Finding]:
    """The driver, the GPUs, and what runs on the first of them.

    Args:
        wanted: a backend for GPUs; its absence, and that of a GPU, are problems. None: they are not.
    """
    level = "problem" if wanted else "note"
    try:
        found = nvidia.find()
    except BackendError as error:
        yield Finding(level, "gpu", *explain(error))
        return
    for gpu in found.gpus:
        text = f"{gpu.name}, compute capability {gpu.compute_capability}, {size_text(gpu.memory)}"
        yield Finding("ok", "gpu", f"{text}; driver for CUDA up to {found.cuda}")
    try:
        first, _ = requirements.usable_gpu(0)
    except BackendError as error:
        yield Finding(level, "gpu", *explain(error))
        return
    yield from _check_gpu_libraries(first, found.cuda, wanted)


def _check_gpu_libraries(gpu: nvidia.Gpu, cuda: str, wanted: str | None) -> Iterator[Finding]:
    """Which libraries for GPUs are installed and run on this one. Plans are checked with their engine directory."""
    for library in (*tensorrt.LIBRARIES, "onnxruntime-cuda"):
        try:
            version = _library_on(library, gpu, cuda)
        except (EbcaError, ImportError, OSError) as error:
            text, remedy = explain(error)
            yield Finding("problem" if library == wanted else "note", library, text, remedy or "reinstall it")
        else:
            yield Finding("ok", library, version)


def _library_on(library: str, gpu: nvidia.Gpu, cuda: str) -> str:
    """The version of a library that runs on a GPU. Raises BackendError if it does not."""
    if library in tensorrt.LIBRARIES:
        tensorrt.runs_on(library, gpu)
        return tensorrt.require_installed(library)
    # Imports ONNX Runtime, which the doctor must be able to miss.
    from ebca.engines.backends import onnxruntime_provider

    return onnxruntime_provider.check_provider(cuda)


def _check_processor() -> Iterator[Finding]:
    cores = processor.physical_cores()
    yield Finding(
        "ok",
        "processor",
        f"{processor.model_name()}; {cores} physical cores, by default one thread each",
    )
    allowed = processor.usable_cores()
    if allowed < cores:
        yield Finding(
            "note",
            "processor",
            f"this process may use {allowed} of {cores} cores",
            f"pass `--threads {allowed}`",
        )


def _check_memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{size_text(memory.total)}, {size_text(memory.available)} available"
    # Peak of an SD 1.5 generation at 512 x 512 in float32, measured at 4.4 GB and rounded up.
    if memory.available < 6e9:
        return Finding("note", "memory", f"{text}; SD 1.5 at 512 x 512 needs 6 GB", "close other programs")
    return Finding("ok", "memory", text)


def _check_cache() -> Iterator[Finding]:
    try:
        folder = cache_folder.cache_folder()
    except EngineError as error:
        yield Finding("note", "cache", f"{error.problem}; {_WITHOUT_CACHE}", error.remedy)
        return
    try:
        bound = cache_folder.cache_limit()
    except ParameterError as error:
        yield Finding("problem", "cache", *explain(error))
        bound = cache_folder.DEFAULT_LIMIT_GB * 1e9
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        text = f"'{folder}' is not writable; {_WITHOUT_CACHE}"
        yield Finding("note", "cache", text, "set EBCA_CACHE_DIR to a writable folder")
        return
    engines = storage.stored_engines()
    size = sum(engine.size for engine in engines)
    free = shutil.disk_usage(existing).free
    text = (
        f"'{folder}' holds {len(engines)} prepared engine{'' if len(engines) == 1 else 's'}, {size_text(size)}; "
        f"kept below {bound / 1e9:g} GB (EBCA_CACHE_LIMIT_GB); disk has {size_text(free)} free"
    )
    if free < _FREE_DISK_BYTES:
        remedy = "free disk space, set EBCA_CACHE_DIR, or run `ebca-doctor --clear-cache`"
        yield Finding("note", "cache", f"{text}; preparing SD 1.5 needs about {size_text(_FREE_DISK_BYTES)}", remedy)
    else:
        yield Finding("ok", "cache", text)


def _check_export_packages() -> Finding:
    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed; needed only to export and to compare with PyTorch"
        return Finding("note", "export", text, 'to export, run `pip install "ebca[export]"`')
    return Finding("ok", "export", ", ".join(f"{name} {version_text(name)}" for name in _EXPORT_PACKAGES))
