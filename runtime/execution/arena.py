"""One arena for all tensors of a plan: two tensors share memory where their lifetimes do not meet."""

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

    def meets(self, other: "Lifetime") -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Layout:
    """Offset of every tensor, and the arena's size, in bytes."""

    offsets: Mapping[str, int]
    nbytes: int


def lifetimes(plan: Sequence[Step], sizes: Mapping[str, int], keep: Sequence[str]) -> dict[str, Lifetime]:
    """Lifetime of every tensor of a plan.

    Args:
        plan: steps in order.
        sizes: bytes per tensor name.
        keep: inputs and outputs of the whole; they stay for the whole step, so that it can be replayed as it is.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(plan):
        for name in (*step.inputs, *step.outputs):
            first.setdefault(name, index)
            last[name] = index
    for name in keep:
        first[name], last[name] = 0, len(plan)
    return {name: Lifetime(sizes[name], first[name], last[name]) for name in first}


def lay_out(tensors: Mapping[str, Lifetime]) -> Layout:
    """Place the largest first, each at the lowest offset that is free during its life."""
    placed: list[tuple[int, Lifetime]] = []
    offsets: dict[str, int] = {}
    total = 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
        tensor = tensors[name]
        offset = 0
        for start, other in sorted((p for p in placed if p[1].meets(tensor)), key=lambda p: p[0]):
            if offset + tensor.nbytes <= start:
                break
            offset = max(offset, _aligned(start + other.nbytes))
        offsets[name] = offset
        placed.append((offset, tensor))
        total = max(total, offset + tensor.nbytes)
    return Layout(offsets, _aligned(total))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
