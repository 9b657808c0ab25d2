"""Traces modules with equal weights once per process, because tracing takes most of the time of an export of the tiny
model, and dozens of tests export it. Everything else of an export runs every time."""

import hashlib
from typing import Any

import onnx_ir as ir
import pytest
from torch import nn


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the places that trace."""
    from ebca.export.graph import controlnet, modules, traced_unet

    unet, part, residuals = traced_unet.trace, modules._exported, controlnet._trace
    known_unets: dict[str, ir.Model] = {}
    known_controlnets: dict[str, ir.Model] = {}
    known_parts: dict[str, ir.Model] = {}

    def trace(module: Any, *, controlled: bool = False) -> ir.Model:
        key = _digest(module, dict(module.config), controlled)
        if key not in known_unets:
            known_unets[key] = unet(module, controlled=controlled)
            _own_weights(known_unets[key].graph)
        return known_unets[key].clone()

    def control(module: Any, channels: int, names: Any) -> ir.Model:
        key = _digest(module, dict(module.config), channels, names)
        if key not in known_controlnets:
            known_controlnets[key] = residuals(module, channels, names)
            _own_weights(known_controlnets[key].graph)
        return known_controlnets[key].clone()

    def export(module: nn.Module, examples: Any, dynamic: Any) -> ir.Model:
        key = _digest(module, type(module).__name__, [tuple(one.shape) for one in examples], dynamic)
        if key not in known_parts:
            known_parts[key] = part(module, examples, dynamic)
            _own_weights(known_parts[key].graph)
        return known_parts[key].clone()

    monkeypatch.setattr(traced_unet, "trace", trace)
    monkeypatch.setattr(controlnet, "_trace", control)
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
