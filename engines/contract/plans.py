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
from typing import Any, Protocol

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.tensors import TensorSpec, tensors_from_json
from ebca.errors import EngineError

Range = tuple[int, int, int]
"""Smallest, best and largest value of a size."""

_CAPABILITY = re.compile(r"\d+\.\d+")


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
    names = set().union(*(_names(dim) for tensor in tensors for dim in tensor.shape))
    return {name: size for name, size in sizes.items() if name in names}


def resolve(tensors: Mapping[str, TensorSpec], sizes: Mapping[str, Range]) -> dict[str, TensorSpec]:
    """Tensors in which every dimension that is the same for all `sizes` is an integer."""
    fixed = {name: low for name, (low, _, high) in sizes.items() if low == high}

    def dimension(dim: Dim) -> Dim:
        return dims.evaluate(dim, fixed) if _names(dim) <= fixed.keys() else dim

    return {n: TensorSpec(t.dtype, tuple(dimension(d) for d in t.shape)) for n, t in tensors.items()}


def _names(dim: Dim) -> set[str]:
    if isinstance(dim, int):
        return set()
    factors = [factor.strip() for factor in dim.split("*")]
    return {f.split("_")[0] for f in factors if not f.isdecimal()}


def from_json(data: Mapping[str, Any]) -> LibraryPlans:
    """The plans of one library, from its entry in `manifest.json`."""
    return LibraryPlans(
        version=data["version"],
        compute_capabilities=tuple(data["compute_capabilities"]),
        platform=data["platform"],
        shapes=tuple(_sizes(shape) for shape in data["shapes"]),
        components={
            name: tuple(
                Plan(
                    p["file"],
                    _sizes(p["sizes"]),
                    tensors_from_json(p["inputs"]),
                    tensors_from_json(p["outputs"]),
                    p["scratch_bytes"],
                )
                for p in entries
            )
            for name, entries in data["components"].items()
        },
    )


def _sizes(data: Mapping[str, Any]) -> dict[str, Range]:
    return {name: (low, best, high) for name, (low, best, high) in data.items()}


def validate(library: str, plans: LibraryPlans, components: Mapping[str, HasTensors], files: Collection[str]) -> None:
    """Raise ValueError if the section contradicts itself or the components."""
    if not isinstance(plans.version, str) or not isinstance(plans.platform, str):
        raise ValueError(f"plans of '{library}' have version {plans.version!r} and platform {plans.platform!r}")
    for capability in plans.compute_capabilities:
        if not _CAPABILITY.fullmatch(capability):
            raise ValueError(f"plans of '{library}' name the compute capability {capability!r}")
    for sizes in (*plans.shapes, *(plan.sizes for entries in plans.components.values() for plan in entries)):
        for name, size in sizes.items():
            if any(type(n) is not int for n in size) or not 1 <= size[0] <= size[1] <= size[2]:
                raise ValueError(f"plans of '{library}' have the range {size} for {name}")
    for name, entries in plans.components.items():
        component = components[name]
        for plan in entries:
            if plan.file not in files:
                raise ValueError(f"the plan '{plan.file}' is not among the files")
            if plan.scratch_bytes is not None and type(plan.scratch_bytes) is not int:
                raise ValueError(f"the plan '{plan.file}' needs {plan.scratch_bytes!r} bytes of scratch")
            for mine, its in ((plan.inputs, component.inputs), (plan.outputs, component.outputs)):
                if mine != resolve(its, plan.sizes):
                    raise ValueError(f"the plan '{plan.file}' and component '{name}' have different tensors")
