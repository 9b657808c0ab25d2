"""What a GPU must have before an engine is opened on it. Everything is asked first, so nothing is left half open."""

from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import Manifest
from ebca.engines.machine import nvidia
from ebca.engines.machine.nvidia import Gpu, Nvidia
from ebca.errors import BackendError, ParameterError
from ebca.plugins.kernels.binaries import KernelSet


def usable_gpu(index: int) -> tuple[Gpu, Nvidia]:
    """A GPU that devices can be opened on, and what is known of the driver.

    Args:
        index: its number, as CUDA counts.

    Raises:
        BackendError: no driver, no cuda-bindings, a driver that is too old for them, no GPU of that number, or no
            kernel for it.
    """
    found = nvidia.find()
    bindings = installed_version("cuda-bindings")
    if bindings is None:
        raise BackendError("cuda-bindings is not installed, and GPUs need it", 'run `pip install "ebca[gpu]"`')
    # The kernels need less: their PTX is that of CUDA 12.0, and their cubins run on every GPU and driver that 13.0 has.
    nvidia.check_cuda(found.cuda, bindings, f"cuda-bindings {bindings}")
    gpu = nvidia.select(found, index)
    kernels = KernelSet.load()
    try:
        for kernel in kernels.arguments:
            kernels.on(kernel, _capability(gpu))
    except BackendError as error:
        raise BackendError(f"{gpu.name}: {error.problem}", f"{error.remedy}; use such a GPU, or the CPU") from None
    return gpu, found


def check_kernels(manifest: Manifest, gpu: Gpu) -> None:
    """Check that there are kernels for the head sizes of an engine that computes in float16.

    Raises:
        BackendError: there is none for one of its layers.
    """
    # In other types the backend runs the op's graph.
    if manifest.compute != "fp16":
        return
    kernels = KernelSet.load()
    for layer in manifest.unet.layers:
        try:
            kernels.choose("ebca_forward", _capability(gpu), "float16", layer.head_dim, SINGLE=1)
        except ParameterError as error:
            remedy = f"{error.remedy}; run this engine on the CPU"
            raise BackendError(f"{error.problem}, which '{layer.name}' has", remedy) from None


def check_memory(directory: EngineDirectory, backend: str, gpu: Gpu, free: int) -> None:
    """Check that the weights of the UNet fit, which stay on the GPU while an engine is in use.

    Text encoder and VAE are not counted: they can be closed while the UNet runs. Nor is what depends on the size of the
    images.

    Args:
        directory: what will be opened.
        backend: which will open it.
        gpu: its name and total memory.
        free: bytes that are free on it.

    Raises:
        BackendError: they do not fit.
    """
    need = weight_bytes(directory.manifest, backend)
    if need > free:
        raise BackendError(
            f"the weights of the UNet need {_gb(need)}, and {gpu.name} has {_gb(free)} of {_gb(gpu.memory)} free",
            "close other programs that use the GPU (`nvidia-smi` lists them), or use the CPU",
        )


def weight_bytes(manifest: Manifest, backend: str) -> int:
    """Bytes of the UNet's segments as a backend reads them; of several plans of one segment, the smallest counts."""
    plans = manifest.plans[backend].components if backend in manifest.plans else {}
    total = 0
    for name in manifest.unet.segments:
        if name in plans:
            total += min(manifest.files[plan.file].size for plan in plans[name])
        else:
            total += sum(manifest.files[file].size for file in manifest.components[name].files(backend))
    return total


def installed_version(package: str) -> str | None:
    """The version of a Python package; None if it is not installed."""
    # Takes longer to import than all of this module, and engines on the CPU never need it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _capability(gpu: Gpu) -> tuple[int, int]:
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"
