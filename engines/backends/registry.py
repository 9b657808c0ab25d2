"""The backends by name, and which one to take."""

from importlib.util import find_spec

from ebca.engines.backends.protocol import Backend, BackendOptions, Register
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine.nvidia import Gpu
from ebca.errors import BackendError, ParameterError

BACKENDS = ("onnxruntime", "openvino")
GPU_BACKENDS = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
PRECISIONS = ("fp32", "bf16")


def available() -> list[str]:
    """Names of the backends whose library is installed."""
    return [name for name in BACKENDS if find_spec(name) is not None]


def create(name: str | None, options: BackendOptions) -> Backend:
    """The named backend, or the one that gains: openvino for bfloat16, onnxruntime for float32, where it was as fast on
    the processors at hand and needs 3 GB less at Stable Diffusion 1.5 size.

    Raises:
        BackendError: it is not installed, or cannot run at the precision asked for.
        ParameterError: unknown name or precision.
    """
    if options.precision not in PRECISIONS:
        raise ParameterError(f"precision '{options.precision}' is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if options.threads is not None and options.threads < 1:
        raise ParameterError(f"threads is {options.threads}", "give 1 or more, or nothing for one per physical core")
    present = available()
    if name is None:
        order = ("onnxruntime", "openvino") if options.precision == "fp32" else ("openvino", "onnxruntime")
        name = next((one for one in order if one in present), "onnxruntime")
    if name in GPU_BACKENDS:
        raise ParameterError(
            f"backend '{name}' runs on an NVIDIA GPU",
            f"choose device 'cuda', or one of {', '.join(BACKENDS)} for the CPU",
        )
    if name not in BACKENDS:
        raise ParameterError(f"backend '{name}' is unknown", f"choose one of {', '.join(BACKENDS)}")
    if name not in present:
        raise BackendError(f"backend '{name}' is not installed", f"run `pip install {name}`")
    if name == "openvino":
        from ebca.engines.backends.openvino import OpenVINOBackend

        return OpenVINOBackend(options)
    from ebca.engines.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(options)


def create_on_gpu(
    name: str | None,
    directory: EngineDirectory,
    options: BackendOptions,
    gpu: Gpu,
    index: int,
    stream: int,
    register: Register | None = None,
) -> Backend:
    """The named backend on a GPU, or the one that the engine directory was made for: the library it has plans of, else
    onnxruntime-cuda.

    Args:
        index: of the GPU.
        stream: handle of the CUDA stream to enqueue on.
        register: called where plans of the directory need plugins.

    Raises:
        BackendError: it is not installed, or the directory's plans do not fit this GPU; the message says what does.
        ParameterError: a backend that does not run on a GPU, or an option that it has not.
    """
    if options.precision != "fp32" or options.threads is not None:
        raise ParameterError("precision and threads are for the CPU", "on a GPU the engine directory decides")
    if name is None:
        name = next(iter(directory.manifest.plans), "onnxruntime-cuda")
    if name in BACKENDS:
        raise ParameterError(
            f"backend '{name}' runs on the CPU", f"choose one of {', '.join(GPU_BACKENDS)}, or device 'cpu'"
        )
    if name == "onnxruntime-cuda":
        if find_spec("onnxruntime") is None:
            raise BackendError("backend 'onnxruntime-cuda' is not installed", "run `pip install onnxruntime-gpu`")
        from ebca.engines.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

        return OnnxRuntimeCudaBackend(stream, index)
    if name not in GPU_BACKENDS:
        raise ParameterError(f"backend '{name}' is unknown", f"choose one of {', '.join(GPU_BACKENDS)}")
    from ebca.engines.backends.tensorrt import TensorRTBackend

    plans, whole = directory.manifest.plans.get(name), directory.manifest.unet.full_unet_with_updates
    needs_plugin = plans is not None and whole in plans.components
    return TensorRTBackend(directory, gpu, stream, name, register=register if needs_plugin else None)
