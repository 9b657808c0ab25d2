"""A module as an ONNX graph, as torch makes it."""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ebca.export.graph.op_node import OPSET
from ebca.export.quiet import quiet

Examples = tuple[Tensor, ...]
Dynamic = tuple[dict[int, Any], ...]


def exported(module: nn.Module, examples: Examples, dynamic: Dynamic) -> ir.Model:
    """Trace a module. No weights are copied.

    Args:
        module: to trace.
        examples: its inputs. No size of theirs may be 0 or 1, and no two may be equal: torch would specialise or merge
            them.
        dynamic: axes of each that are not fixed, as `torch.export.export` takes them.
    """
    with torch.no_grad(), quiet():
        program = torch.export.export(module, examples, dynamic_shapes=dynamic, strict=False)
        made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    assert made is not None
    return made.model
