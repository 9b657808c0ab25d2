"""Write one graph as a component and measure it, or take it from an interrupted export. Several stages use this."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from ebca.engines.contract.manifest import Component
from ebca.export.graph.component import write_component
from ebca.export.graph.half import to_half
from ebca.export.parity import check, module_error
from ebca.export.stages.context import Context, StageResult, parity_limit


@dataclass(frozen=True)
class ComponentJob:
    """One component to write.

    Attributes:
        name: of the component and of its entry in the parity record.
        path: of its files without suffix, relative to the engine directory.
        label: what progress and errors call it.
        weight_bytes: bytes of its weights as stored.
        graph: makes the float32 graph; called only if the component is not written yet.
        measure: (component, folder) -> relative L2 error against PyTorch.
        computes_half: the written graph computes in float16.
        keep: names of a graph's values whose products stay in float32, see `to_half`.
        float32_only: the component must not run at a lower precision.
        weights_of: name of a component that has the same weights, and whose file is used for both.
        overflow: what to do about an error that is not finite; None: nothing is known.
    """

    name: str
    path: str
    label: str
    weight_bytes: int
    graph: Callable[[], ir.Graph]
    measure: Callable[[Component, Path], float]
    computes_half: bool
    keep: Callable[[ir.Graph], Collection[str]] = lambda graph: ()
    float32_only: bool = False
    weights_of: str | None = None
    overflow: str | None = None


def write(context: Context, job: ComponentJob) -> StageResult:
    """Write a component unless it is finished; check its error either way.

    Raises:
        ExportError: the error is above the limit, or a weight does not fit float16.
    """
    context.report(f"{job.label}, {job.weight_bytes / 1e6:.0f} MB")
    limit = parity_limit(computes_half=job.computes_half)
    found = context.workspace.get(job.name)
    if found is not None:
        component, facts = found
        error = check(f"the {job.label}", facts["parity"], limit)
    else:
        graph = job.graph()
        if job.computes_half:
            to_half(graph, keep=job.keep(graph), float32_outputs=[str(value.name) for value in graph.outputs])
        half = context.options.stores_half and not job.computes_half
        component = write_component(
            graph,
            context.folder,
            job.path,
            half=half,
            float32_only=job.float32_only,
            for_gpu=context.options.computes_half,
            weights_of=None if job.weights_of is None else context.before.components[job.weights_of],
        )
        error = check(f"the {job.label}", job.measure(component, context.folder), limit, job.overflow)
        context.workspace.put(job.name, component, {"parity": error})
    return StageResult({job.name: component}, parity={job.name: error}, weight_bytes=job.weight_bytes)


def write_all(context: Context, jobs: Collection[ComponentJob]) -> StageResult:
    """Write several components, one after the other."""
    result = StageResult()
    for job in jobs:
        result = result.joined(write(context.after(result), job))
    return result


def measure_module(module: nn.Module, example: np.ndarray) -> Callable[[Component, Path], float]:
    """The `measure` of a graph with a single input, made from a module."""
    return partial(_module_error, module, example)


def _module_error(module: nn.Module, example: np.ndarray, component: Component, folder: Path) -> float:
    return module_error(module, component, folder, example)
