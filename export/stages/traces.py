"""Traced graphs, kept in the workspace: an export that is interrupted does not trace again."""

from collections.abc import Callable
from functools import partial

import onnx_ir as ir
from torch import nn

from ebca.export.graph import kept_trace
from ebca.export.graph.kept_trace import Keep
from ebca.export.output import TRACES
from ebca.export.stages.context import Context
from ebca.export.workspace import Workspace


def keeper(context: Context, name: str) -> Keep:
    """What keeps the trace of one module of an export."""
    return partial(kept, context.workspace, name)


def kept(workspace: Workspace, name: str, module: nn.Module, make: Callable[[], ir.Model]) -> ir.Model:
    """The graph that `make` traces from a module, or that an earlier export of the same key has.

    It is always read from the file, so an export that was interrupted writes the bytes of one that was not.
    """
    path, entry = f"{TRACES}/{name}.onnx", f"trace of {name}"
    if workspace.facts(entry) is None:
        kept_trace.save(make(), module, workspace.folder / path)
        workspace.put_files(entry, [path], {})
    return kept_trace.load(workspace.folder / path, module)
