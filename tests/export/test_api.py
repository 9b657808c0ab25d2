"""Export as a whole: what is written, what is refused, and what an interruption leaves."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebca
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import open_directory
from ebca.errors import EngineError, ExportError, ParameterError
from ebca.export import api, export_unet, parity
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.lock import FolderLock
from ebca.export.options import ExportEvent, ExportOptions
from ebca.export.stages import component, run, unet
from ebca.export.weights import export_key


def _files(folder: Path) -> dict[str, str]:
    return {name: record.sha256 for name, record in manifests.read(folder).files.items()}


def _assert_no_engine(output: Path) -> None:
    for folder in (output, output.with_name(output.name + ".partial")):
        with pytest.raises(EngineError):
            open_directory(folder)


def test_manifest_of_tiny(tiny_engine_dir: Path) -> None:
    directory = open_directory(tiny_engine_dir)
    directory.verify()
    manifest = directory.manifest
    assert manifest.kind == "text-to-image"
    assert len(manifest.unet.segments) == 9 and len(manifest.unet.layers) == 7
    assert manifest.parity["segments"].keys() == {*manifest.unet.segments} - {"time_embedding"}
    worst = max(*manifest.parity["segments"].values(), *manifest.parity["unet"].values())
    assert 0 < worst <= 1e-5 < parity.LIMIT
    on_disk = {p.relative_to(tiny_engine_dir).as_posix() for p in tiny_engine_dir.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, manifests.FILE_NAME}


def test_nothing_tells_where_it_was_made(tiny_engine_dir: Path) -> None:
    places = [str(tiny_engine_dir.parent).encode(), str(Path(api.__file__).resolve().parent.parent).encode()]
    for path in tiny_engine_dir.rglob("*"):
        if path.is_file():
            assert not any(place in path.read_bytes() for place in places), path.name


def test_float16_halves_the_weights_and_equals_the_rounded_unet(
    tiny_unet_dir: Path, tiny_engine_fp16_dir: Path
) -> None:
    def weights(folder: Path) -> int:
        return sum(p.stat().st_size for p in folder.glob("unet/*.data"))

    assert weights(tiny_engine_fp16_dir) < 0.52 * weights(tiny_unet_dir)
    unet = build_tiny().unet
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(parameter.half())
    rng = np.random.default_rng(0)
    sample, context = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 8, 8), (2, 77, 32)))
    with torch.no_grad():
        expected = unet(torch.from_numpy(sample), 500, torch.from_numpy(context)).sample.numpy()
    noise = ebca.Denoiser(tiny_engine_fp16_dir, backend="onnxruntime")(sample, 500, context[:, None]).noise
    # Both compute in float32 from the same rounded weights.
    assert parity.relative_l2(noise, expected) <= 1e-5


def test_float16_export_leaves_the_callers_unet_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = build_tiny().unet
    before = {name: p.clone() for name, p in unet.named_parameters()}
    processors = unet.attn_processors
    monkeypatch.setattr(run, "stages", _stop)
    with pytest.raises(KeyboardInterrupt):
        export_unet(unet, tmp_path / "engine", precision="fp16")
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())
    assert {n: type(p) for n, p in unet.attn_processors.items()} == {n: type(p) for n, p in processors.items()}


def _stop(*args: Any, **settings: Any) -> Any:
    raise KeyboardInterrupt


def test_wrong_result_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parity.open_graph

    def off(path: Path) -> Callable[[Any], dict[str, np.ndarray]]:
        return lambda feeds: {name: array * np.float32(1.001) for name, array in real(path)(feeds).items()}

    monkeypatch.setattr(parity, "open_graph", off)
    with pytest.raises(ExportError, match=r"segment_00 differs from PyTorch by 1\.0e-03"):
        export_unet(build_tiny().unet, tmp_path / "engine")
    _assert_no_engine(tmp_path / "engine")


def test_refusals_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TracedUNet, "of", _stop)
    checkpoint = build_tiny()
    with pytest.raises(ParameterError, match="precision 'int8' is unknown"):
        export_checkpoint(checkpoint, tmp_path / "a", precision="int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file"):
        export_checkpoint(checkpoint, tmp_path / "file")
    with pytest.raises(ExportError, match="not writable"):
        export_checkpoint(checkpoint, tmp_path / "file" / "engine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ExportError, match=r"holds other files \(thesis\.tex"):
        export_checkpoint(checkpoint, tmp_path / "full", overwrite=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ExportError, match="no room"):
        export_checkpoint(checkpoint, tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_damaged_weights(tmp_path: Path) -> None:
    checkpoint = build_tiny()
    weight = next(iter(checkpoint.unet.parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = 1e6
    with pytest.raises(ExportError, match="does not fit float16; export with --precision fp32"):
        export_checkpoint(checkpoint, tmp_path / "engine", precision="fp16")
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_checkpoint(checkpoint, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_existing_engine(tiny_unet_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = shutil.copytree(tiny_unet_dir, tmp_path / "engine")
    (tmp_path / "engine.old").mkdir()
    with pytest.raises(ExportError, match="pass --overwrite"):
        export_unet(build_tiny().unet, output)
    checkpoint = build_tiny(seed=1)
    checkpoint.text_encoder = checkpoint.vae = None
    export_checkpoint(checkpoint, output, overwrite=True)
    assert _files(output) != _files(tiny_unet_dir)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine", "engine.old"]


def _interrupt_at(text: str) -> Callable[[ExportEvent], None]:
    def progress(event: ExportEvent) -> None:
        if event.text.startswith(text):
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_export_is_resumed(
    tiny_engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "engine"
    with pytest.raises(KeyboardInterrupt):
        # Tables are always computed again, so other step counts keep the segments.
        export_checkpoint(build_tiny(), output, scheduler_steps=(73,), on_progress=_interrupt_at("segment 6"))
    _assert_no_engine(output)
    partial = output.with_name("engine.partial")
    # Of the four finished segments, one is damaged meanwhile.
    damaged = partial / "unet" / "segment_01.onnx.data"
    content = bytearray(damaged.read_bytes())
    content[10] ^= 1
    damaged.write_bytes(content)
    written: list[str] = []
    real = component.write_component

    def write(graph: Any, folder: Path, name: str, **options: Any) -> Any:
        written.append(name)
        return real(graph, folder, name, **options)

    for module in (component, unet):
        monkeypatch.setattr(module, "write_component", write)
    export_checkpoint(build_tiny(), output)
    assert "unet/segment_01" in written and not {"unet/segment_00", "unet/segment_02", "unet/segment_03"} & {*written}
    assert _files(output) == _files(tiny_engine_dir)
    assert not partial.exists()


def test_work_for_other_weights_is_deleted(tmp_path: Path) -> None:
    output = tmp_path / "engine"
    with pytest.raises(KeyboardInterrupt):
        export_unet_with(build_tiny(seed=1).unet, output, _interrupt_at("segment 4"))
    with pytest.raises(KeyboardInterrupt):
        export_unet_with(build_tiny(seed=2).unet, output, _interrupt_at("segment 3"))
    state = json.loads((output.with_name("engine.partial") / "progress.json").read_text())
    assert list(state["done"]) == ["trace of unet", "time_embedding", "segment_00"]


def export_unet_with(unet: Any, output: Path, on_progress: Callable[[ExportEvent], None]) -> None:
    checkpoint = build_tiny()
    checkpoint.unet, checkpoint.text_encoder, checkpoint.vae = unet, None, None
    export_checkpoint(checkpoint, output, on_progress=on_progress)


def test_two_exports_to_one_folder(tmp_path: Path) -> None:
    held = FolderLock.acquire(tmp_path / "engine.partial")
    assert isinstance(held, FolderLock)
    with pytest.raises(ExportError, match=f"process {os.getpid()} is exporting to .* now; wait for it or stop it"):
        export_unet(build_tiny().unet, tmp_path / "engine")
    held.release()


def test_an_output_that_was_filled_during_the_export_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "engine"

    def fill(event: ExportEvent) -> None:
        if event.text == "done":
            output.mkdir()
            (output / "thesis.tex").write_text("mine")

    with pytest.raises(ExportError, match=r"holds other files \(thesis\.tex"):
        export_unet_with(build_tiny().unet, output, fill)
    shutil.rmtree(output)
    # Everything is finished but the rename.
    export_unet_with(build_tiny().unet, output, _interrupt_at("no such work"))
    open_directory(output).verify()


def test_a_link_to_a_folder_is_exported_into(tmp_path: Path) -> None:
    (tmp_path / "disk" / "engine").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/engine")
    assert export_unet(build_tiny().unet, tmp_path / "link") == tmp_path / "link"
    open_directory(tmp_path / "link").verify()
    assert (tmp_path / "link").is_symlink() and [p.name for p in (tmp_path / "disk").iterdir()] == ["engine"]


@pytest.mark.parametrize("limit", [20_000, 300_000])
def test_a_disk_that_fills_up_loses_no_finished_work(tiny_unet_dir: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files fails as a full disk does, in a write: of a trace, or of weights."""
    output = tmp_path / "engine"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    unet = build_tiny().unet

    def fill(event: ExportEvent) -> None:
        # The scheduler tables, which are written before, are larger than either.
        if event.text.startswith("tracing"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with pytest.raises(ExportError, match=r"cannot write to .*engine\.partial': .*; finished parts are kept"):
            export_unet_with(unet, output, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _assert_no_engine(output)
    export_unet(unet, output)
    assert _files(output) == _files(tiny_unet_dir)
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_other_configurations_are_other_exports() -> None:
    """Equal weights compute something else with another activation, so nothing finished is taken over."""
    options = ExportOptions()
    checkpoint = build_tiny()
    key = export_key(checkpoint, options)
    assert export_key(build_tiny(), options) == key
    assert checkpoint.vae is not None and checkpoint.text_encoder is not None
    checkpoint.vae.register_to_config(act_fn="gelu")
    other = export_key(checkpoint, options)
    checkpoint.text_encoder.config.hidden_act = "gelu"
    assert len({key, other, export_key(checkpoint, options)}) == 3
    moved = build_tiny()
    moved.unet.register_to_config(_name_or_path="/somewhere/else")
    assert export_key(moved, options) == key
