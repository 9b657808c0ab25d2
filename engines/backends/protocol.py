"""The seam between the runtime and the inference libraries: a backend opens graphs, a runner runs one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ebca.engines.contract.manifest import Component

Call = Callable[[], None]
Arrays = Mapping[str, Any]
"""Tensor name -> array: numpy arrays on the CPU, `ebca.engines.machine.memory.DeviceArray` on a GPU."""
Register = Callable[[Any, Any], object]
"""Registers plugins. Called with the library's module and one of its plugin registries; the result must live as long as
the registry."""


@dataclass(frozen=True)
class BackendOptions:
    """How to run.

    threads: None for one per physical core.
    precision: "fp32", or "bf16" if the backend supports it.
    """

    threads: int | None = None
    precision: str = "fp32"


class Runner(Protocol):
    """One opened graph. Bindings of one runner may run in different threads; one binding must not."""

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        """Scratch memory that a call needs besides its arrays; calls that never overlap may share it. 0 if the library
        manages its own."""
        ...

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        """Fix the addresses of all inputs and outputs; each call of the result runs the graph once.

        Args:
            inputs, outputs: C-contiguous arrays in the memory that the backend computes in. They belong to the caller
                and must outlive the result.
            workspace: address of the scratch memory that `workspace_bytes` asks for.
            once: the result is called once, so a library that manages its own scratch memory gives it back then.
        """
        ...


class Backend(ABC):
    """Opens components as they are in the engine directory.

    Attributes:
        name: as in `ebca.engines.backends.registry`.
        fixes_shapes: a component is opened for one set of sizes, and again for another.
        stays_open: opening takes far longer than running, so components stay open while memory allows.
        shares_scratch: components take scratch memory from one place and give it back after each run. Recorded work
            still uses what it was given, so it is out of date once another component has been opened.
    """

    name: str
    fixes_shapes = False
    stays_open = False
    shares_scratch = False

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Everything besides the files of the engine directory that a prepared or cached form depends on: versions,
        processor or GPU, precision."""

    @abstractmethod
    def open(self, graph: Path, component: Component, dimensions: Mapping[str, int] | None = None) -> Runner:
        """Open a component: its graph in the engine directory, or what `PreparingBackend.prepare` wrote.

        Args:
            graph: the file.
            component: its entry in the manifest.
            dimensions: the value of each symbolic dimension of its inputs and outputs, by its text; for backends that
                fix shapes.
        """

    def flush_caches(self) -> None:  # noqa: B027 - most backends keep no cache
        """Persist compilation results for later processes. Called after every component in use has run once."""


class PreparingBackend(Backend):
    """A backend that converts graphs once per machine, into a form that it opens quickly."""

    def growth(self, precision: str) -> float:
        """Bytes that the prepared form takes at least per byte of files, whose weights are stored as `precision`."""
        # Weights may be padded to the processor's block size.
        return 1.1

    @abstractmethod
    def prepare(self, graph: Path, target: Path) -> None:
        """Write the prepared form of `graph` as `target` and files named after it. May take long."""
