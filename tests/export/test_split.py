"""The graph cut: on random graphs, and on the built-in UNet against PyTorch."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from helpers.random_graphs import feeds_for, models, run_split, run_whole, symbols_of  # noqa: E402
from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ebca.engines import dims  # noqa: E402
from ebca.errors import ExportError  # noqa: E402
from ebca.export.split import Split, is_op, operands, split  # noqa: E402
from ebca.export.trace import OPSET  # noqa: E402

SIZES = {"batch": 2, "contexts": 3, "tokens": 5, "height": 7, "width": 4}
# One where buffers are what costs, one where their number is.
REFERENCES = ({**SIZES, "height": 96, "width": 64}, SIZES)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def cut(model: ir.Model, reference: Mapping[str, int]) -> Split:
    try:
        return split(model, symbols_of(model), reference, OPSET)
    except ExportError as error:
        # A segment that reshapes to height x width without any tensor of that size: no UNet has one.
        assume("no tensor beside" not in str(error))
        raise


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


@SLOW
@given(models(), st.sampled_from(REFERENCES))
def test_segments_in_a_chain_compute_what_the_whole_graph_computes(model: ir.Model, reference: dict[str, int]) -> None:
    result = cut(model, reference)
    feeds = feeds_for(model, SIZES)
    expected, actual = run_whole(model, feeds), run_split(result, feeds)
    for name, value in expected.items():
        # Same operators in the same order; only the stand-in's means are summed in another one.
        assert relative(actual[name], value) < 1e-6
    for name, boundary in result.tensors.items():
        assert actual[name].shape == dims.shape(boundary.shape, SIZES)


@SLOW
@given(models(), st.sampled_from(REFERENCES))
def test_bytes(model, reference) -> None:
    result = cut(model, reference)
    n = naive(model, reference); s = carried(result, reference)
    print(n, s)
    assert s[1] <= n[1], (n, s)

def carried(result, sizes):
    last=len(result.segments)
    written={}; read={}
    for i,s in enumerate(result.segments):
        for x in s.inputs: read[x]=max(read.get(x,-1),i)
        for x in s.outputs: written[x]=i
        for o in s.ops:
            for x in o.inputs: read[x]=max(read.get(x,-1),i)
            for x in o.outputs: written[x]=i
    tot=0; n=0
    for x,w in written.items():
        if x in ("noise","last_image","contexts_out"): continue
        b=result.tensors[x].nbytes(sizes)+65536
        tot+=b*max(read.get(x,w)-w,0) ; n+=b
    return tot,n

def naive(model, sizes):
    symbols=symbols_of(model)
    live=set(); stack=[v.producer() for v in model.graph.outputs]
    while stack:
        n=stack.pop()
        if n in live: continue
        live.add(n); stack+=[v.producer() for v in operands(n) if v.producer() is not None]
    level={}; 
    for n in model.graph:
        if n in live:
            level[n]=max((level[p]+is_op(p) for v in operands(n) if (p:=v.producer()) is not None),default=0)
    tot=0;nn=0
    for n in level:
        for v in n.outputs:
            if v.is_graph_output(): continue
            users=[u for u,_ in v.uses() if u in level and v in operands(u)]
            w=level[n]
            if is_op(n) or any(is_op(u) or level[u]>w for u in users):
                b=4*int(np.prod(dims.shape(symbols.shape(v),sizes)))+65536
                nn+=b; tot+=b*max([level[u]-w for u in users],default=0)
    return tot,nn
