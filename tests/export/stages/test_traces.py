"""Tracing takes most of the time of an export, so an interrupted one does not trace again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ebca.engines.contract import manifest as manifests
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph import modules, traced_unet
from ebca.export.output import TRACES
from ebca.export.stages import component, unet


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that have been traced."""
    seen: list[str] = []
    whole, part = traced_unet.trace, modules._exported

    def trace(module: Any, **options: Any) -> Any:
        seen.append("UNet")
        return whole(module, **options)

    def export(module: Any, *about: Any) -> Any:
        seen.append(type(module).__name__)
        return part(module, *about)

    monkeypatch.setattr(traced_unet, "trace", trace)
    monkeypatch.setattr(modules, "_exported", export)
    return seen


def _stop_after_tracing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """End the export when the first graph of a module that has been traced is written."""
    for place in (component, unet):
        real: Callable[..., Any] = place.write_component

        def write(graph: Any, folder: Path, path: str, real: Callable[..., Any] = real, **options: Any) -> Any:
            if path == name:
                raise KeyboardInterrupt
            return real(graph, folder, path, **options)

        monkeypatch.setattr(place, "write_component", write)


def test_no_module_is_traced_twice(
    tiny_engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[str]
) -> None:
    output = tmp_path / "engine"
    for name in ("unet/time_embedding", "text_encoder", "vae_decoder", "vae_encoder"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _stop_after_tracing(patch, name)
            export_checkpoint(build_tiny(), output)
    kept = {path.name for path in (tmp_path / "engine.partial" / TRACES).iterdir()}
    graphs = ("unet", "text_encoder", "text_encoder_layers", "vae_decoder", "vae_encoder")
    assert kept == {f"{name}.onnx" for name in graphs}
    export_checkpoint(build_tiny(), output)
    assert traced == ["UNet", "TextEncoder", "TextEncoderLayers", "VaeDecoder", "VaeEncoder"]
    assert manifests.read(output).files == manifests.read(tiny_engine_dir).files
    assert not (output / TRACES).exists()


def test_a_damaged_trace_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[str]) -> None:
    output = tmp_path / "engine"
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _stop_after_tracing(patch, "unet/time_embedding")
            export_checkpoint(build_tiny(), output)
        path = tmp_path / "engine.partial" / TRACES / "unet.onnx"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert traced == ["UNet", "UNet"]
