"""An opened engine directory, shared by sessions and threads."""

import logging
from collections.abc import Callable
from pathlib import Path

from ebca.engines.backends.protocol import Backend, BackendOptions
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.runtime.components import Components, OnPrepare
from ebca.runtime.devices import registry as devices
from ebca.runtime.devices.choice import AUTO, DeviceChoice, parse
from ebca.runtime.devices.device import Device
from ebca.runtime.schema import parameters as rules
from ebca.runtime.session import Session
from ebca.runtime.validation import callback

log = logging.getLogger(__name__)

OnDevice = Callable[[DeviceChoice], None]
"""Called with the device of an engine and why it is this one, before components are prepared for it."""


def load(
    engine: str | Path,
    device: str = AUTO,
    backend: str | None = None,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    on_prepare: OnPrepare | None = None,
    on_device: OnDevice | None = None,
) -> "Engine":
    """Open an engine directory.

    The first call on a machine prepares every component for it, and keeps the result in the user's cache. This takes up
    to a minute at SD 1.5 size; later calls take a second or two.

    "auto" is the GPU if the directory computes in float16 and everything for the first GPU is there: driver and
    cuda-bindings, and plans for this GPU with their library, or ONNX Runtime with CUDA. Else it is the CPU. A backend
    decides by where it runs, and precision and threads are for the CPU. If the GPU then turns out to be unusable while
    this function opens it, for example because its memory is full, the CPU is used; later errors are raised. The
    choice and its reason are logged (INFO), are `Engine.device_choice`, and go to `on_device`. With any other device,
    nothing is ever replaced by the CPU.

    Args:
        engine: the directory, or the name of a bundled engine.
        device: "auto", "cpu", "cuda" (the first GPU), "cuda:1" and so on.
        backend: on the CPU "onnxruntime" or "openvino"; None: openvino for bf16 if installed, else onnxruntime. On a
            GPU "tensorrt-rtx", "tensorrt" or "onnxruntime-cuda"; None: the library that the directory has plans for,
            else onnxruntime-cuda. "auto" also takes onnxruntime-cuda if the plans cannot run here.
        precision: "fp32", or "bf16" if the backend and the processor support it.
        threads: on the CPU; None: one per physical core.
        on_prepare: called with (done, total, component) while components are prepared.
        on_device: called with the device and the reason before components are prepared.

    Raises:
        EngineError: the directory cannot be used.
        BackendError: the device or the backend is missing, or cannot run the engine.
        ParameterError: an unknown name, or values that do not go together.
    """
    parse(device)
    callback("on_prepare", on_prepare)
    callback("on_device", on_device)
    directory = open_directory(engine)
    found = devices.open_for(directory, device, backend, BackendOptions(threads=threads, precision=precision))
    log.info("%s", found.choice)
    if on_device is not None:
        on_device(found.choice)
    compute = directory.manifest.compute
    kind = precision if compute == "fp32" else compute
    opened = Engine(directory, found.backend, found.device, kind, found.choice)
    opened.prepare(on_prepare)
    return opened


class Engine(Components):
    """An opened engine directory. Thread-safe: sessions own their buffers, the engine owns the opened components.

    Attributes:
        device_choice: the device, and why it is this one.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        backend: Backend,
        device: Device,
        precision: str = "fp32",
        choice: DeviceChoice | None = None,
    ) -> None:
        super().__init__(directory, backend, device, precision)
        self.device_choice = choice or DeviceChoice(device.name, "as asked", backend.name)

    def session(
        self,
        height: int | None = rules.SESSION.height,
        width: int | None = rules.SESSION.width,
        batch: int = rules.SESSION.batch,
    ) -> Session:
        """A session for images of one size, see `Session`."""
        return Session(self, height=height, width=width, batch=batch)
