"""An opened engine directory, shared by sessions and threads."""

from pathlib import Path

from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract.directory import open_directory
from ebca.runtime.components import Components, OnPrepare
from ebca.runtime.devices import registry as devices
from ebca.runtime.session import Session


def load(
    engine: str | Path,
    device: str = "cpu",
    backend: str | None = None,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    on_prepare: OnPrepare | None = None,
) -> "Engine":
    """Open an engine directory.

    On the first call on a machine every component is prepared for it and kept in the user's cache, which takes up to
    a minute at SD 1.5 size; later calls take a second or two.

    Args:
        engine: the directory, or the name of a bundled one.
        device: "cpu", "cuda" (the first GPU) or "cuda:1" and so on.
        backend: on the CPU "onnxruntime", "openvino", or None: openvino for bf16 where installed, else onnxruntime. On
            a GPU "tensorrt-rtx", "tensorrt", "onnxruntime-cuda", or None: what the directory has plans for, else
            onnxruntime-cuda.
        precision: "fp32", or "bf16" where the backend and the processor have it.
        threads: None for one per physical core.
        on_prepare: called with (done, total, component) while components are prepared.

    Raises:
        EngineError, BackendError, ParameterError: see `ebca.errors`.
    """
    where = devices.create(device)
    directory = open_directory(engine)
    chosen = where.backend(backend, directory, BackendOptions(threads=threads, precision=precision))
    compute = directory.manifest.compute
    opened = Engine(directory, chosen, where, precision if compute == "fp32" else compute)
    opened.prepare(on_prepare)
    return opened


class Engine(Components):
    """An engine directory, opened. Thread-safe: sessions own their buffers, the engine owns the opened graphs."""

    def session(self, height: int | None = None, width: int | None = None, batch: int = 1) -> Session:
        """A session for pictures of one size, see `Session`."""
        return Session(self, height=height, width=width, batch=batch)
