"""The plans section of a manifest: which plan accepts which shapes, and which contradictions are refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers import manifests as stamping

from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.plans import LibraryPlans, Plan, Range, resolve, used_sizes
from ebca.engines.contract.tensors import TensorSpec
from ebca.errors import EngineError

INPUTS = {"x": TensorSpec("float16", ("batch", "height_1*width_1", 8)), "t": TensorSpec("float32", ("batch",))}


def plan(file: str, batch: Range, side: Range) -> Plan:
    sizes = {"batch": batch, "height": side, "width": side}
    return Plan(file, sizes, resolve(INPUTS, sizes), {})


def library(*entries: Plan) -> LibraryPlans:
    return LibraryPlans("1.7", ("8.9",), "linux-x86_64", (), {"segment": entries})


def test_dimensions_that_are_the_same_for_all_sizes_are_integers() -> None:
    fixed = resolve(INPUTS, {"batch": (2, 2, 2), "height": (9, 9, 9), "width": (4, 6, 8)})
    assert fixed["t"].shape == (2,) and fixed["x"].shape == (2, "height_1*width_1", 8)
    assert resolve(INPUTS, {"batch": (1, 2, 2), "height": (9, 9, 9), "width": (8, 8, 8)})["x"].shape == ("batch", 20, 8)
    sizes: dict[str, Range] = {"tokens": (77, 77, 77), "batch": (2, 2, 2)}
    assert used_sizes(INPUTS.values(), sizes) == {"batch": (2, 2, 2)}
    assert used_sizes([TensorSpec("float32", (3, "8*height"))], {"height": (1, 1, 1)}) == {"height": (1, 1, 1)}


def test_the_narrowest_plan_that_accepts_the_shapes_is_chosen() -> None:
    ranged, square, large = (
        plan("r", (2, 2, 4), (8, 8, 16)),
        plan("s", (2, 2, 2), (8, 8, 8)),
        plan("l", (2, 2, 2), (32, 32, 32)),
    )
    built = library(ranged, square, large)
    assert built.find("segment", {"x": (2, 16, 8), "t": (2,)}) is square
    assert built.find("segment", {"x": (2, 64, 8), "t": (2,)}) is ranged
    assert built.find("segment", {"x": (4, 16, 8), "t": (4,)}) is ranged
    assert built.find("segment", {"x": (2, 256, 8), "t": (2,)}) is large
    for shapes in (
        {"x": (5, 16, 8), "t": (5,)},
        {"x": (2, 15, 8), "t": (2,)},
        {"x": (2, 16, 9), "t": (2,)},
        {"t": (2,)},
    ):
        with pytest.raises(EngineError, match=r"was built for batch 2 to 4, height 8 to 16.* is given .*; export"):
            built.find("segment", shapes)
    with pytest.raises(EngineError, match="'other' was built for nothing"):
        built.find("other", {"x": (2, 16, 8)})


@pytest.fixture(scope="module")
def data(tiny_gpu_dir: Path) -> dict[str, Any]:
    return stamping.load(tiny_gpu_dir)


def test_round_trip(data: dict[str, Any], tmp_path: Path) -> None:
    stamping.write(tmp_path, data)
    manifest = manifests.read(tmp_path)
    (tmp_path / manifests.FILE_NAME).write_text(manifest.to_json())
    assert manifests.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["compute"], "int8", "compute is 'int8'"),
        (["plans", "tensorrt-rtx", "version"], 1.7, "version is 1.7 instead of a text"),
        (["plans", "tensorrt-rtx", "compute_capabilities"], ["ninety"], "names the compute capability 'ninety'"),
        (
            ["plans", "tensorrt-rtx", "shapes", 0, "batch"],
            [2, 1, 2],
            r"batch is \[2, 1, 2\] instead of a smallest, best",
        ),
        (["plans", "tensorrt-rtx", "shapes", 0, "batch"], [2, 2, "2"], r"batch\[2\] is '2' instead of"),
        (["plans", "tensorrt-rtx", "shapes", 0, "batch"], [2, 2, 0], r"batch\[2\] is 0 instead of"),
        (["plans", "tensorrt-rtx", "shapes", 0], {}, "shapes is empty, or lacks one of"),
        (["plans", "tensorrt-rtx", "shapes"], [], "shapes is empty"),
        (["plans", "tensorrt-rtx", "components", "segment_01", 0, "sizes"], {}, "different tensors"),
        (["plans", "tensorrt-rtx", "components", "segment_01", 0, "file"], "x.plan", "'x.plan' is not among the files"),
        (["plans", "tensorrt-rtx", "components", "segment_01", 0, "scratch_bytes"], "x", "scratch_bytes is 'x'"),
        (
            ["plans", "tensorrt-rtx", "components", "segment_01", 0, "inputs", "contexts", "dtype"],
            "float16",
            "different",
        ),
        (["plans", "tensorrt-rtx", "components", "other"], [], "names the unknown component 'other'"),
    ],
)
def test_contradictions_are_refused(
    data: dict[str, Any], place: list[Any], value: Any, message: str, tmp_path: Path
) -> None:
    changed = copy.deepcopy(data)
    node = changed
    for key in place[:-1]:
        node = node[key] if not isinstance(node, dict) or key in node else next(iter(node.values()))
    node[place[-1]] = value
    stamping.write(tmp_path, changed)
    with pytest.raises(EngineError, match=message):
        manifests.read(tmp_path)
