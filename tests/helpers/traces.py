"""Traces modules with equal weights once per process, because tracing takes most of the time of an export of the tiny
model, and dozens of tests export it. Everything else of an export runs every time."""

import hashlib
from typing import Any

import onnx_ir as ir
import pytest
from torch import nn


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the places that trace."""
    from ebca.export.graph import modules, traced_unet

    unet, part = traced_unet.trace, modules._exported
    known_unets: dict[str, ir.Model] = {}
    known_parts: dict[str, ir.Model] = {}

    def trace(module: Any) -> ir.Model:
        key = _digest(module, dict(module.config))
        if key not in known_unets:
            known_unets[key] = unet(module)
            _own_weights(known_unets[key].graph)
        return known_unets[key].clone()

    def export(module: nn.Module, examples: Any, dynamic: Any) -> ir.Model:
        key = _digest(module, type(module).__name__, [tuple(one.shape) for one in examples], dynamic)
        if key not in known_parts:
            known_parts[key] = part(module, examples, dynamic)
            _own_weights(known_parts[key].graph)
        return known_parts[key].clone()

    monkeypatch.setattr(traced_unet, "trace", trace)
    monkeypatch.setattr(modules, "_exported", export)


def _digest(module: nn.Module, *about: object) -> str:
    found = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


def _own_weights(graph: ir.Graph) -> None:
    """Copy the weights: traces share the module's memory, which a later export may round to float16 in place."""
    for value in graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
