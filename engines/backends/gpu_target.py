"""What a backend on a GPU is created for."""

from dataclasses import dataclass

from ebca.engines.backends.protocol import Register
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine.nvidia import Gpu


@dataclass(frozen=True)
class GpuTarget:
    """An engine directory on one GPU, whose CUDA context is current in the calling thread.

    Attributes:
        backend: name of the backend; one module may serve several.
        directory: what will be opened.
        gpu, index: the GPU, and its number on this machine.
        stream: handle of the CUDA stream to enqueue on.
        register: registers the plugins that plans may need.
    """

    backend: str
    directory: EngineDirectory
    gpu: Gpu
    index: int
    stream: int
    register: Register | None = None
