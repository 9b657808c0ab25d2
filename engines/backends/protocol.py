"""The one seam between the runtime and whatever runs a graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ebca.engines.contract.manifest import Component

Call = Callable[[], None]
Arrays = Mapping[str, Any]
"""By tensor name: numpy's on the CPU, `ebca.engines.machine.memory.DeviceArray` elsewhere."""
Register = Callable[[Any, Any], object]
"""Registers plugins: called with the library's module and a plugin registry of it. The result lives as long as the
registry."""


@dataclass(frozen=True)
class BackendOptions:
    """How to run: `threads` None means one per physical core; `precision` "bf16" only where a backend has it."""

    threads: int | None = None
    precision: str = "fp32"


class Runner(Protocol):
    """One opened graph. Not safe for use from two threads at once through the same binding."""

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        """Scratch memory that a call needs beside its arrays; calls that never overlap may share it. 0 where the engine
        looks after its own."""
        ...

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0) -> Call:
        """Fix the addresses of all inputs and outputs; the result runs the graph once per call.

        The arrays are C-contiguous, lie where the backend computes, belong to the caller and must outlive the result.
        workspace: address of the scratch memory that `workspace_bytes` asks for.
        """
        ...


class Backend(Protocol):
    """Opens components. `prepare` writes a form into a folder that `open` then loads quickly; where `prepares` is false
    there is no such form, and graphs are opened as they lie in the engine directory."""

    name: str
    prepares: bool

    def identity(self) -> dict[str, str]:
        """Everything beside the files that a prepared form depends on: versions, processor, precision."""
        ...

    def prepare(self, graph: Path, target: Path) -> None:
        """Write the prepared form of `graph` as `target` and files named after it. May be slow."""
        ...

    def open(self, prepared: Path, component: Component) -> Runner:
        """Open what `prepare` wrote."""
        ...

    def flush_caches(self) -> None:
        """Called when all that is used has run once: keep for the next process what that took to find out."""
        ...
