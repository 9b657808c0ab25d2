"""The `plans` section of `manifest.json`: TensorRT plans built ahead of time, per library.

    version                  version of the library that built the plans; they run on no other
    compute_capabilities     GPUs they run on, as "8.9"
    platform                 operating system and processor they run on, as "linux-x86_64"
    shapes                   requested sizes of the UNet call, see below
    components               component -> its plans, one per range of sizes:
        file                 the plan, one of `files`
        sizes                name -> [smallest, best, largest], for the names in the component's shapes
        inputs, outputs      the component's tensors; a dimension that is the same for all sizes is an integer
        scratch_bytes        device memory that a run needs; null if only a GPU can tell

Sizes are those of `ebca.engines.contract.dims`. batch counts the rows of the component's own call (two per image in the
UNet with guidance); height and width are latent sizes.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ebca.engines.contract import dims, limits
from ebca.engines.contract.checked import Entry
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.tensors import TensorSpec, read_tensors
from ebca.errors import EngineError

Range = tuple[int, int, int]
"""Smallest, best and largest value of a size."""

_CAPABILITY = re.compile(r"[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Plan:
    """One component, built for one range of sizes; see the module docstring."""

    file: str
    sizes: Mapping[str, Range]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    scratch_bytes: int | None = None

    def serves(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether the plan accepts inputs of these shapes."""
        low, high = ({name: r[end] for name, r in self.sizes.items()} for end in (0, 2))
        return shapes.keys() == self.inputs.keys() and all(
            len(shapes[name]) == len(spec.shape)
            and all(
                dims.evaluate(dim, low) <= n <= dims.evaluate(dim, high)
                for dim, n in zip(spec.shape, shapes[name], strict=True)
            )
            for name, spec in self.inputs.items()
        )


@dataclass(frozen=True)
class LibraryPlans:
    """Everything built with one library, see the module docstring."""

    version: str
    compute_capabilities: tuple[str, ...]
    platform: str
    shapes: tuple[Mapping[str, Range], ...]
    components: Mapping[str, tuple[Plan, ...]]

    def find(self, component: str, shapes: Mapping[str, Sequence[int]]) -> Plan:
        """The plan with the narrowest range that accepts these shapes of the component's inputs.

        Raises:
            EngineError: no plan does.
        """
        entries = self.components.get(component, ())
        serving = [plan for plan in entries if plan.serves(shapes)]
        if not serving:
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            built = " or ".join(describe(plan.sizes) for plan in entries) or "nothing"
            raise EngineError(
                f"'{component}' was built for {built}, and is given {asked}",
                "export again with --shape for that size. "
                "Plans of the UNet have two rows per image, for guidance: inversion and guidance_scale 1 need twice "
                "as many images, or --backend onnxruntime-cuda",
            )
        return min(serving, key=lambda plan: sum(high - low for low, _, high in plan.sizes.values()))


class HasTensors(Protocol):
    """The part of a component that plans refer to."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...


def describe(sizes: Mapping[str, Range]) -> str:
    """Sizes in words: "batch 2, height 64, width 64 to 96"."""
    return ", ".join(
        f"{name} {low}" if low == high else f"{name} {low} to {high}" for name, (low, _, high) in sizes.items()
    )


def used_sizes(tensors: Iterable[TensorSpec], sizes: Mapping[str, Range]) -> dict[str, Range]:
    """The part of `sizes` that the shapes of these tensors use."""
    names = set[str]().union(*(dims.parse(dim).names for tensor in tensors for dim in tensor.shape))
    return {name: size for name, size in sizes.items() if name in names}


def resolve(tensors: Mapping[str, TensorSpec], sizes: Mapping[str, Range]) -> dict[str, TensorSpec]:
    """Tensors in which every dimension that is the same for all `sizes` is an integer."""
    fixed = {name: low for name, (low, _, high) in sizes.items() if low == high}

    def dimension(dim: Dim) -> Dim:
        return dims.evaluate(dim, fixed) if dims.parse(dim).names <= fixed.keys() else dim

    return {n: TensorSpec(t.dtype, tuple(dimension(d) for d in t.shape)) for n, t in tensors.items()}


def read_plans(entry: Entry) -> LibraryPlans:
    """The plans of one library, from its entry in `manifest.json`. Raises EngineError for a wrong type or range."""
    capabilities = entry["compute_capabilities"].names()
    for capability in capabilities:
        if not _CAPABILITY.fullmatch(capability):
            raise EngineError(f"{entry.path} names the compute capability {capability!r}")
    return LibraryPlans(
        version=entry["version"].name(),
        compute_capabilities=capabilities,
        platform=entry["platform"].name(),
        shapes=tuple(_sizes(shape) for shape in entry["shapes"].elements()),
        components={
            name: tuple(_plan(plan) for plan in plans.elements()) for name, plans in entry["components"].items()
        },
    )


def _plan(entry: Entry) -> Plan:
    scratch = entry.get("scratch_bytes")
    return Plan(
        entry["file"].text(),
        _sizes(entry["sizes"]),
        read_tensors(entry["inputs"]),
        read_tensors(entry["outputs"]),
        None if scratch is None else scratch.integer(0, limits.FILE_BYTES),
    )


def _sizes(entry: Entry) -> dict[str, Range]:
    return {name: _range(name, size) for name, size in entry.items()}


def _range(name: str, entry: Entry) -> Range:
    if name not in dims.NAMES:
        raise EngineError(f"{entry.path} is not one of {', '.join(dims.NAMES)}")
    values = [value.integer(1, limits.DIMENSION) for value in entry.elements()]
    if len(values) != 3 or values != sorted(values):
        raise EngineError(f"{entry.path} is {values} instead of a smallest, best and largest size")
    low, best, high = values
    return low, best, high


def check(library: str, plans: LibraryPlans, components: Mapping[str, HasTensors], files: Collection[str]) -> None:
    """Raise EngineError if the plans of a library contradict themselves, the components or the files."""
    if not plans.shapes or any(shape.keys() != set(dims.NAMES) for shape in plans.shapes):
        raise EngineError(f"plans.{library}.shapes is empty, or lacks one of {', '.join(dims.NAMES)}")
    for name, entries in plans.components.items():
        if name not in components:
            raise EngineError(f"plans.{library} names the unknown component '{name}'")
        component = components[name]
        for plan in entries:
            if plan.file not in files:
                raise EngineError(f"the plan '{plan.file}' is not among the files")
            for mine, its in ((plan.inputs, component.inputs), (plan.outputs, component.outputs)):
                used = set[str]().union(*(dims.parse(dim).names for t in its.values() for dim in t.shape))
                same = mine.keys() == its.keys() and used <= plan.sizes.keys()
                if not same or not all(mine[n].equals(t) for n, t in resolve(its, plan.sizes).items()):
                    raise EngineError(f"the plan '{plan.file}' and component '{name}' have different tensors")
