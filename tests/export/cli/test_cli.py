"""ebca-export: the engine, the table, and one clear line for everything a user can get wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import ebca
from ebca.engines.contract.directory import open_directory
from ebca.export import cli
from ebca.export.checkpoint.tiny import save_tiny
from ebca.export.cli import checks
from ebca.export.stages import component, unet


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *argv: str) -> str:
    """The one line on stderr of a call that fails and leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    assert cli.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("ebca-export: error: "), err
    assert sorted(folder.rglob("*")) == before
    return err.removeprefix("ebca-export: error: ").strip()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


# --- what works


def test_an_export_from_a_folder_replaces_an_engine_and_makes_images(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "engine").mkdir()
    for name in ("manifest.json", "of the old engine"):
        (here / "engine" / name).write_text("{}")
    argv = ["--model", str(checkpoint), "--output-dir", "engine", "--precision", "fp16", "--scheduler-steps", "73"]
    assert "holds an engine already; pass --overwrite" in refused(capsys, here, *argv)
    assert cli.main([*argv, "--backend", "onnxruntime", "--overwrite"]) == 0
    out, err = capsys.readouterr()
    assert out == "wrote engine\n"
    lines = err.splitlines()
    assert any(line.startswith("segment 8 of ") for line in lines)
    assert any(line.startswith("prepared ") for line in lines)
    assert "Warning" not in err
    assert [p.name for p in here.iterdir()] == ["engine"]

    directory = open_directory(here / "engine")
    directory.verify()
    assert not (here / "engine" / "of the old engine").exists()
    assert directory.manifest.precision == "fp16"
    prepared: list[Any] = []
    with ebca.load(here / "engine", backend="onnxruntime", on_prepare=lambda *a: prepared.append(a)) as engine:
        assert not prepared
        with engine.session(64, 64) as session:
            result = session.generate("a cat", steps=73, seed=1, output="latents", guidance_scale=1)
    assert len(result.timings["unet_steps"]) == 74


def test_a_dry_run_prints_the_split_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model", "tiny", "--dry-run", "--height", "64", "--width", "256", "--batch-size", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not list(here.iterdir())
    lines = out.splitlines()
    assert "segments at 3 x 256x64, with guidance" in lines[0]
    names = [cell for line in lines for cell in line.split() if cell.startswith("segment_")]
    assert names == [f"segment_{i:02}" for i in range(8)]
    assert sum("(8 heads)" in line for line in lines) == 7
    assert max(map(len, lines)) <= 120


# --- refusals


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--height", "100"), "--height is 100; give a multiple of 8"),
        (("--width", "0"), "--width is 0; give a multiple of 8"),
        (("--batch-size", "0"), "--batch-size is 0; give 1 or more"),
        (("--scheduler-steps", "0"), "--scheduler-steps has 0; a step count lies between 1 and 1000"),
        (("--scheduler-steps", "20", "1001"), "--scheduler-steps has 1001"),
        (("--batch-size", "99999"), "--batch-size is 99999; give 1 or more, at most 1024"),
        (("--height", "99999999999999999999992"), "give a multiple of 8, at most 65536"),
        (("--height", "64"), "--height is about --dry-run and plans; an engine makes images of any size; leave"),
        (("--batch-size", "2"), "--batch-size is about --dry-run and plans"),
        (("--revision", "main"), "revision = 'main' means nothing for the built-in model tiny"),
        (("--tokenizer", "nowhere"), "tokenizer = 'nowhere' means nothing for the built-in model tiny"),
        (("--output-dir", "o" * 300), "cannot be used: File name too long; name another folder"),
        (
            ("--model", "sd-9"),
            "unknown model 'sd-9': known names are tiny, tiny-xl, random-sd-1.5, random-sdxl, sd-1.4",
        ),
        (("--model", ""), "--model is empty"),
        (("--model", "./nowhere"), "there is no folder ./nowhere"),
        (("--model", "./with[red]markup[/]"), "there is no folder ./with[red]markup[/]"),
        (("--model", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], named: str
) -> None:
    assert named in refused(capsys, here, "--model", "tiny", "--output-dir", "engine", *more)


def test_a_hub_model_that_cannot_be_reached(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = ("--model", "some/hub-id", "--output-dir", "engine", "--cache-dir", str(here / "hub"))
    message = refused(capsys, here, *argv)
    assert "cannot reach the hub for some/hub-id" in message and "HF_HOME" in message


def test_folders_that_are_no_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    assert "empty is not in diffusers format" in refused(capsys, here, "--model", "./empty", "--output-dir", "engine")
    (here / "engine.d").mkdir()
    (here / "engine.d" / "manifest.json").write_text("{}")
    message = refused(capsys, here, "--model", "./engine.d", "--output-dir", "engine")
    assert "engine.d is an engine directory already; name the model that it was made from" in message
    (here / "image.png").write_bytes(b"\x89PNG\r\n")
    message = refused(capsys, here, "--model", "image.png", "--output-dir", "engine")
    assert "image.png is no checkpoint: a .safetensors file or a folder in diffusers format is needed" in message
    (here / "broken.safetensors").write_bytes(b"123")
    message = refused(capsys, here, "--model", "broken.safetensors", "--output-dir", "engine")
    assert "broken safetensors file" in message


def test_another_architecture_is_refused(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(checkpoint, here / "other")
    config = here / "other" / "unet" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "addition_embed_type": "text_time", "addition_time_embed_dim": 256}))
    message = refused(capsys, here, "--model", "./other", "--output-dir", "engine")
    assert "unsupported UNet: projection_class_embeddings_input_dim = None" in message


def test_outputs_that_cannot_be_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("mine")
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    (here / "link").symlink_to("nowhere")
    (here / "taken.partial").mkdir()
    (here / "taken.partial" / "thesis.txt").write_text("mine")
    for output, named in [
        ("file", "output 'file' is a file; name a folder"),
        ("full", "holds other files (thesis.txt, ...); name a new folder"),
        ("file/engine", "cannot be made"),
        ("link", "output 'link' is a link to 'nowhere', which does not exist; name a folder"),
        ("taken", "'taken.partial' is where the export would be written until it is complete, and no export made it"),
    ]:
        assert named in refused(capsys, here, "--model", "tiny", "--output-dir", output)
        assert named in refused(capsys, here, "--model", "tiny", "--output-dir", output, "--overwrite")


def test_an_output_folder_that_is_not_writable(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refused(capsys, here, "--model", "tiny", "--output-dir", "deep/down/engine")
    assert "'deep/down/engine' cannot be made" in message and "is not writable" in message


def test_no_room_is_found_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    message = refused(capsys, here, "--model", "tiny", "--output-dir", "engine")
    assert "no room" in message and "0.0 GB are free" in message


def test_missing_packages_are_named_with_the_command_that_installs_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch(name: str) -> Any:
        return None if name in ("torch", "onnxscript") else find_spec(name)

    monkeypatch.setattr(checks, "find_spec", without_torch)
    message = refused(capsys, here, "--model", "tiny", "--output-dir", "engine")
    assert message == 'exporting needs torch, onnxscript; run `pip install "ebca[export]"`'


def test_a_backend_that_is_not_installed_is_found_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "ebca.engines.backends.registry.find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    message = refused(capsys, here, "--model", "tiny", "--output-dir", "engine", "--backend", "openvino")
    assert message == "backend 'openvino' is not installed; run `pip install openvino`"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--model", "tiny"],
        ["--model", "tiny", "--output-dir", "x", "--precision", "int4"],
        ["--model", "tiny", "--output-dir", "x", "--height", "tall"],
        ["--model", "tiny", "--output-dir", "x", "--colour"],
    ],
)
def test_usage_errors_exit_with_2(argv: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    error, *_, hint = err.splitlines()
    assert error.startswith("ebca-export: error: ") and hint == "see ebca-export --help"
    assert not list(here.iterdir())


def test_help_has_examples_and_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert max(map(len, out.splitlines())) <= 100


def test_old_spellings_of_flags_still_work() -> None:
    argv = ["--model", "tiny", "--dry-run"]
    for old, new in (("--with-vanilla", "--with-full-unet"), ("--one-piece", "--full-unet-plan")):
        assert cli.parser().parse_args([*argv, old]) == cli.parser().parse_args([*argv, new])
        assert cli.parser().parse_args([*argv, old]) != cli.parser().parse_args(argv)


# --- interrupted


def interrupt_at(start: str, argv: list[str]) -> tuple[int, list[str]]:
    """Exit code and lines of stderr of an export that gets Ctrl-C at the line that starts so."""
    command = [sys.executable, "-m", "ebca.export.cli", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if line.startswith(start):
                process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    return process.returncode, lines


def test_ctrl_c_is_one_line_and_the_same_command_resumes(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--model", str(checkpoint), "--output-dir", "engine"]
    code, lines = interrupt_at("segment 5 of ", argv)
    assert code == 130
    assert lines[-1] == "ebca-export: interrupted; run the same command again to resume"
    assert not any("Traceback" in line for line in lines)
    assert [p.name for p in here.iterdir()] == ["engine.partial"]
    with pytest.raises(ebca.EngineError):
        ebca.load(here / "engine.partial")

    written: list[str] = []
    original: Callable[..., Any] = component.write_component

    def record(graph: Any, folder: Path, name: str, **options: Any) -> Any:
        written.append(name)
        return original(graph, folder, name, **options)

    for module in (component, unet):
        monkeypatch.setattr(module, "write_component", record)
    assert cli.main(argv) == 0
    assert "unet/segment_00" not in written and "unet/segment_02" not in written
    assert "unet/segment_06" in written and "vae_decoder" in written
    assert [p.name for p in here.iterdir()] == ["engine"]
    open_directory(here / "engine").verify()


def test_ctrl_c_while_tracing_is_one_line(checkpoint: Path, here: Path) -> None:
    code, lines = interrupt_at("tracing the UNet", ["--model", str(checkpoint), "--output-dir", "engine"])
    assert code == 130
    assert lines[-1] == "ebca-export: interrupted; run the same command again to resume"
    assert not any("Traceback" in line for line in lines)
    assert not (here / "engine").exists()


def test_ctrl_c_that_a_library_drops_still_ends_the_export(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(*args: Any, **kwargs: Any) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ebca.export.checkpoint.load.load_checkpoint", drop)
    handler = signal.getsignal(signal.SIGINT)
    assert cli.main(["--model", "tiny", "--output-dir", "engine"]) == 130
    assert capsys.readouterr().err.startswith("ebca-export: interrupted")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(here.iterdir())
