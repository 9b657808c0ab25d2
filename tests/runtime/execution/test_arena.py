"""The layout of an arena: properties that hold for any schedule of segments."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ebca.engines.contract.manifest import Step
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.device import ALIGNMENT
from ebca.runtime.execution.arena import Lifetime, lay_out, lifetimes

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def lives(draw: st.DrawFn) -> dict[str, Lifetime]:
    spans = st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 12))
    drawn = draw(st.lists(spans, min_size=1, max_size=25))
    return {f"t{i}": Lifetime(n, min(a, b), max(a, b)) for i, (n, a, b) in enumerate(drawn)}


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@SETTINGS
@given(lives())
def test_tensors_with_overlapping_lifetimes_do_not_share_memory(tensors: dict[str, Lifetime]) -> None:
    layout = lay_out(tensors)
    assert layout.offsets.keys() == tensors.keys()
    for a, b in combinations(tensors, 2):
        if tensors[a].overlaps(tensors[b]):
            first, second = sorted((a, b), key=lambda n: (layout.offsets[n], tensors[n].nbytes))
            assert layout.offsets[first] + tensors[first].nbytes <= layout.offsets[second]


@SETTINGS
@given(lives())
def test_every_tensor_is_aligned_and_inside_the_arena(tensors: dict[str, Lifetime]) -> None:
    layout = lay_out(tensors)
    assert layout.nbytes % ALIGNMENT == 0
    for name, offset in layout.offsets.items():
        assert offset >= 0 and offset % ALIGNMENT == 0
        assert offset + tensors[name].nbytes <= layout.nbytes


@SETTINGS
@given(lives())
def test_the_size_of_the_arena_is_between_the_live_tensors_and_all_tensors(
    tensors: dict[str, Lifetime],
) -> None:
    layout = lay_out(tensors)
    assert layout.nbytes <= sum(aligned(t.nbytes) for t in tensors.values())
    for step in range(13):
        assert layout.nbytes >= sum(t.nbytes for t in tensors.values() if t.first <= step <= t.last)


@SETTINGS
@given(lives())
def test_the_layout_does_not_depend_on_the_order_of_names(tensors: dict[str, Lifetime]) -> None:
    backwards = dict(reversed(tensors.items()))
    assert lay_out(backwards) == lay_out(tensors)


def test_lifetimes_follow_the_steps() -> None:
    steps = [
        Step(segment="a", inputs=("x",), outputs=("p", "skip", "unread")),
        Step(layer=0, inputs=("p",), outputs=("q",)),
        Step(segment="b", inputs=("q", "skip"), outputs=("y",)),
    ]
    sizes = {"x": 4, "p": 8, "skip": 16, "unread": 32, "q": 64, "y": 128, "not in a step": 1}
    assert lifetimes(steps, sizes, keep=("x", "y")) == {
        "x": Lifetime(4, 0, 3),
        "p": Lifetime(8, 0, 1),
        "skip": Lifetime(16, 0, 2),
        "unread": Lifetime(32, 0, 0),
        "q": Lifetime(64, 1, 2),
        "y": Lifetime(128, 0, 3),
    }


def test_tensors_with_separate_lifetimes_share_memory() -> None:
    layout = lay_out({"early": Lifetime(768, 0, 1), "late": Lifetime(768, 2, 3)})
    assert layout.offsets == {"early": 0, "late": 0}
    assert layout.nbytes == 768


def test_an_arena_is_zeroed_and_aligned() -> None:
    for nbytes in (1, 63, 64, 1000):
        memory = CpuDevice().allocate(nbytes)
        assert memory.nbytes == nbytes
        view = memory.view(0, (nbytes,), np.uint8)
        assert view.ctypes.data % ALIGNMENT == 0
        assert not view.any()
