"""One arena for all tensors of a schedule of segments. Tensors whose lifetimes do not overlap share memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ebca.engines.contract.manifest import Step
from ebca.runtime.devices.device import ALIGNMENT


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `nbytes`, written at step `first` and last read at step `last` (inclusive)."""

    nbytes: int
    first: int
    last: int

    def overlaps(self, other: "Lifetime") -> bool:
        """Whether both tensors are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Layout:
    """Offset of every tensor, and size of the arena, in bytes."""

    offsets: Mapping[str, int]
    nbytes: int


def lifetimes(steps: Sequence[Step], sizes: Mapping[str, int], keep: Sequence[str]) -> dict[str, Lifetime]:
    """Lifetime of every tensor of a schedule of segments.

    Args:
        steps: in order.
        sizes: bytes per tensor name.
        keep: inputs and outputs of the evaluation; they live through all steps, so that a replay finds them intact.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.inputs, *step.outputs):
            first.setdefault(name, index)
            last[name] = index
    for name in keep:
        first[name], last[name] = 0, len(steps)
    return {name: Lifetime(sizes[name], first[name], last[name]) for name in first}


def lay_out(tensors: Mapping[str, Lifetime]) -> Layout:
    """Place the largest tensors first, each at the lowest offset that is free during its lifetime."""
    placed: list[tuple[int, Lifetime]] = []
    offsets: dict[str, int] = {}
    total = 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
        tensor = tensors[name]
        offset = 0
        for start, other in sorted((p for p in placed if p[1].overlaps(tensor)), key=lambda p: p[0]):
            if offset + tensor.nbytes <= start:
                break
            offset = max(offset, _aligned(start + other.nbytes))
        offsets[name] = offset
        placed.append((offset, tensor))
        total = max(total, offset + tensor.nbytes)
    return Layout(offsets, _aligned(total))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
