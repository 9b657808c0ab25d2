"""What opening over stand-ins shows: nodes on the CPU, and what unknown sizes cost."""

from pathlib import Path

import onnx
import pytest
from helpers.cuda_standins.inspection import Report
from helpers.cuda_standins.sessions import Job, StandIns
from onnx import TensorProto, helper

from ebca.engines.contract.manifest import Component
from ebca.engines.contract.tensors import TensorSpec

SHAPE = ("batch", 8, "height", "width")
SIZES = {"batch": 2, "height": 16, "width": 24}


def graph(folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, tuple[int, list[float]]]) -> Job:
    """A graph x -> y of float16 images [batch,8,height,width], to be opened at SIZES."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, SHAPE) for name in "xy")
    weights = [helper.make_tensor(name, dtype, [len(v)], v) for name, (dtype, v) in constants.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opsets, ir_version=11)
    onnx.save(model, folder / "graph.onnx")
    spec = TensorSpec("float16", SHAPE)
    return Job(folder / "graph.onnx", Component("graph.onnx", {"x": spec}, {"y": spec}), SIZES)


def inspect(opener: StandIns, job: Job) -> Report:
    (report,) = opener.inspect([job], job.graph.parent)
    return report


def test_a_norm_without_a_kernel_for_its_version_runs_on_the_cpu(opener: StandIns, tmp_path: Path) -> None:
    """ONNX Runtime has registered the CUDA kernel of InstanceNormalization for version 6 alone; opset 23 has 22."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["before"]),
        helper.make_node("InstanceNormalization", ["before", "scale", "bias"], ["after"]),
        helper.make_node("Sigmoid", ["after"], ["y"]),
    ]
    constants = {"scale": (TensorProto.FLOAT16, [1.0] * 8), "bias": (TensorProto.FLOAT16, [0.0] * 8)}
    report = inspect(opener, graph(tmp_path, nodes, constants))
    assert report.host == {"InstanceNormalization": 1}
    assert report.copies == 2
    assert report.error is not None and "no CUDA kernel for InstanceNormalization in 'graph.onnx'" in report.error


def test_the_same_norm_as_a_fused_operator_runs_on_the_gpu(opener: StandIns, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node(
            "GroupNorm", ["last", "scale", "bias"], ["norm"], domain="com.microsoft", groups=4, channels_last=1,
            activation=1,
        ),
        helper.make_node("Transpose", ["norm"], ["y"], perm=[0, 3, 1, 2]),
    ]  # fmt: skip
    constants = {"scale": (TensorProto.FLOAT, [1.0] * 8), "bias": (TensorProto.FLOAT, [0.0] * 8)}
    report = inspect(opener, graph(tmp_path, nodes, constants))
    assert (report.host, report.copies, report.error) == ({}, 0, None)
    assert report.operators == {"Transpose": 2, "GroupNorm": 1}


@pytest.mark.parametrize("fixed", [True, False])
def test_arithmetic_on_sizes_disappears_when_all_sizes_are_given(opener: StandIns, tmp_path: Path, fixed: bool) -> None:
    """Swapping height and width by a computed shape: a product of two sizes stays unless both are known."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "order"], ["swapped"]),
        helper.make_node("Reshape", ["x", "swapped"], ["turned"]),
        helper.make_node("Reshape", ["turned", "sizes"], ["back"]),
        helper.make_node("Sigmoid", ["back"], ["y"]),
    ]
    job = graph(tmp_path, nodes, {"order": (TensorProto.INT64, [0, 1, 3, 2])})
    if not fixed:
        # The backend is told no size of a component without tensors.
        job = Job(job.graph, Component("graph.onnx", {}, {}), {})
    report = inspect(opener, job)
    assert ("Shape" in report.operators) is not fixed
    assert (report.copies > 0) is not fixed
