"""An opened engine directory, shared by sessions and threads."""

from pathlib import Path

from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.contract.directory import open_directory
from ebca.runtime.components import Components, OnPrepare
from ebca.runtime.devices import registry as devices
from ebca.runtime.schema import parameters as rules
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

    The first call on a machine prepares every component for it, and keeps the result in the user's cache. This takes up
    to a minute at SD 1.5 size; later calls take a second or two.

    Args:
        engine: the directory, or the name of a bundled engine.
        device: "cpu", "cuda" (the first GPU), "cuda:1" and so on.
        backend: on the CPU "onnxruntime" or "openvino"; None: openvino for bf16 if installed, else onnxruntime. On a
            GPU "tensorrt-rtx", "tensorrt" or "onnxruntime-cuda"; None: the library that the directory has plans for,
            else onnxruntime-cuda.
        precision: "fp32", or "bf16" if the backend and the processor support it.
        threads: on the CPU; None: one per physical core.
        on_prepare: called with (done, total, component) while components are prepared.

    Raises:
        EngineError: the directory cannot be used.
        BackendError: the backend is missing, or cannot run the engine.
        ParameterError: an unknown name, or values that do not go together.
    """
    where = devices.create(device)
    directory = open_directory(engine)
    chosen = where.backend(backend, directory, BackendOptions(threads=threads, precision=precision))
    compute = directory.manifest.compute
    opened = Engine(directory, chosen, where, precision if compute == "fp32" else compute)
    opened.prepare(on_prepare)
    return opened


class Engine(Components):
    """An opened engine directory. Thread-safe: sessions own their buffers, the engine owns the opened components."""

    def session(
        self,
        height: int | None = rules.SESSION.height,
        width: int | None = rules.SESSION.width,
        batch: int = rules.SESSION.batch,
    ) -> Session:
        """A session for images of one size, see `Session`."""
        return Session(self, height=height, width=width, batch=batch)
