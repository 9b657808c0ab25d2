"""Generates an image with the product's Python code on ONNX Runtime's CUDA provider over the stand-ins:

    LD_LIBRARY_PATH=STANDINS PYTHONPATH=tests python -m helpers.cuda_standins.generate DIRECTORY REQUESTS

Every graph is opened and run with the tensors that the runtime binds, but no kernel writes anything: noise predictions
are 0, and the image is of one colour. What it shows is that shapes, layouts and dtypes of all bindings fit, because
ONNX Runtime checks them. REQUESTS is a JSON list of arguments of `Session.generate`; prints JSON. The interpreter needs
the package's dependencies, with onnxruntime-gpu instead of onnxruntime.
"""

import collections
import json
import logging
import sys
from pathlib import Path
from typing import Any

from helpers.cuda_standins.inspection import use_sources


class NoKernel:
    """Energy cross attention that is bound and does nothing."""

    def workspace_bytes(self, inputs: Any, outputs: Any) -> int:
        return 0

    def bind(self, inputs: Any, outputs: Any, workspace: int = 0, once: bool = False) -> Any:
        return lambda: None


def counted(runs: "collections.Counter[str]", backend: Any) -> Any:
    """A backend that counts the runs of each graph."""
    open_graph = backend.open

    def opened(graph: Path, *about: Any) -> Any:
        runner = open_graph(graph, *about)
        run = runner._run

        def counting(binding: Any, options: Any) -> None:
            runs[graph.name.partition(".")[0]] += 1
            run(binding, options)

        runner._run = counting
        return runner

    backend.open = opened
    return backend


def generate(directory: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The images of each request as (width, height, number of colours), and how often each graph ran."""
    from helpers.driver import HostDriver, HostKernels

    from ebca.engines.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
    from ebca.engines.contract.directory import open_directory
    from ebca.runtime.devices.cuda import CudaDevice
    from ebca.runtime.engine import Engine

    class Kernels(HostKernels):
        def operator(self, *about: Any) -> Any:
            return NoKernel()

    runs: collections.Counter[str] = collections.Counter()
    # Any stream but 0, which stands for none.
    driver = HostDriver(stream=16)
    backend = counted(runs, OnnxRuntimeCudaBackend(driver.stream))
    with (
        Engine(open_directory(directory), backend, CudaDevice(driver, Kernels())) as engine,
        engine.session() as session,
    ):
        results = [session.generate(**words) for words in requests]
    images = [[(*image.size, len(image.getcolors())) for image in result.images] for result in results]
    return {"images": images, "runs": runs}


def main(directory: str, requests: str) -> None:
    use_sources()
    # A warning would say that a graph could not be captured.
    logging.basicConfig(level=logging.WARNING)
    print(json.dumps(generate(Path(directory), json.loads(requests))))


if __name__ == "__main__":
    main(*sys.argv[1:])
