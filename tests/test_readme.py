"""The commands in the README and the docs are accepted by the tools, and the README's Python runs."""

import argparse
import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

import ebca
from ebca.runtime.cli import doctor
from ebca.runtime.cli.run import parser as run_parser
from ebca.runtime.images.files import read_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
TOOLS = ("ebca-export", "ebca-run", "ebca-doctor", "ebca-bench", "ebca-serve")
# Those with a command line of their own.
BENCHMARKS = ("alignment", "ane", "edit", "serving", "tasks")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every call of one of our tools in a bash block."""
    found = []
    for block in blocks("bash", f"{README}\n{DOCS}"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name in TOOLS:
                    found.append([Path(words[0]).name, *words[1:]])
    return found


def parsers() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    from ebca.bench.alignment.cli import parser as alignment_parser
    from ebca.bench.ane.cli import parser as ane_parser
    from ebca.bench.edit.cli import parser as edit_parser
    from ebca.bench.latency.cli import parser as bench_parser
    from ebca.bench.serving.cli import parser as load_parser
    from ebca.bench.tasks.cli import parser as tasks_parser
    from ebca.export.cli.arguments import parser as export_parser
    from ebca.runtime.serving.cli import parser as serve_parser

    named = (alignment_parser, ane_parser, edit_parser, load_parser, tasks_parser)
    made = (export_parser, run_parser, doctor.parser, bench_parser, serve_parser, *named)
    return dict(zip((*TOOLS, *(f"ebca-bench {name}" for name in BENCHMARKS)), made, strict=True))


def test_the_readme_shows_the_tools() -> None:
    shown = {words[0] for words in commands()}
    assert {"ebca-export", "ebca-run", "ebca-doctor"} <= shown
    assert len(commands()) >= 5


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_are_accepted(words: list[str]) -> None:
    tool, arguments = words[0], words[1:]
    if tool == "ebca-bench" and arguments[0] in BENCHMARKS:
        tool, arguments = f"ebca-bench {arguments[0]}", arguments[1:]
    parsers()[tool]().parse_args(arguments)


def test_the_first_command_writes_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebca.runtime.cli.run import main

    monkeypatch.chdir(tmp_path)
    words = next(w for w in commands() if w[0] == "ebca-run" and "shapes" in w)
    assert main(words[1:]) == 0
    (file,) = tmp_path.iterdir()
    assert file.name == words[words.index("--output") + 1]
    assert read_parameters(file)["prompt"] == words[words.index("--prompt") + 1]


def test_the_commands_of_the_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebca.runtime.cli.run import main

    monkeypatch.chdir(tmp_path)
    # The page draws the images that its commands start from.
    (drawing,) = [block for block in blocks("bash", DOCS) if "drawn.png" in block and "ebca-run" not in block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", drawing], check=True, env={**os.environ, "PATH": path})
    ours = [words for words in commands() if words[0] == "ebca-run" and "shapes" in words]
    tasks = set()
    for words in ours:
        assert main([*words[1:], "--backend", "onnxruntime", "--quiet"]) == 0
        tasks.add(read_parameters(tmp_path / words[words.index("--output") + 1])["task"])
    assert tasks == {"text-to-image", "image-to-image", "repaint", "real-image-editing"}
    again = [words for words in commands() if "--from-image" in words]
    for words in again:
        assert main([*words[1:], "--quiet"]) == 0
    same, other = (read_pixels(words[words.index("--output") + 1]) for words in again)
    assert np.array_equal(same, read_pixels("text.png")) and not np.array_equal(other, same)


def read_pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


def test_the_python_examples_run(
    tiny_engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), "orange").save("cat.jpg")
    rng = np.random.default_rng(0)
    scope: dict[str, Any] = {
        "sample": rng.standard_normal((2, 4, 16, 16), np.float32),
        "contexts": rng.standard_normal((2, 2, 77, 32), np.float32),
    }
    examples = blocks("python")
    assert len(examples) >= 2
    for example in examples:
        # The tiny model has another size and another folder; the rest is run as printed.
        code = re.sub(r'"engine-[a-z0-9]+"', repr(str(tiny_engine_dir)), example)
        code = code.replace("height=512, width=512", "height=128, width=128")
        exec(compile(code, "README.md", "exec"), scope)
    assert isinstance(scope["result"], ebca.Result)
    assert scope["result"].parameters["gamma_attn"] == {"schedule": "reverse_step", "value": 0.01, "parameter": 0.5}
    assert scope["result"].parameters["gamma_norm"] == 0.02
    assert capsys.readouterr().out.splitlines()[0] == "0 51"
    assert (tmp_path / "lion.png").is_file()
    assert (tmp_path / "dog.png").is_file()
    assert isinstance(scope["out"], ebca.Denoised)
    assert scope["out"].noise.shape == (2, 4, 16, 16)
    assert scope["out"].contexts.shape == (2, 2, 77, 32)


def test_the_python_host_of_the_embedding_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for example in blocks("python", guide):
        exec(compile(example, "embedding.md", "exec"), scope)
    assert len(scope["images"]) == 3 and scope["image"].shape == (64, 64, 3)
    printed = capsys.readouterr().out
    assert printed.startswith("1 of 10, timestep ") and "cancelled" in printed
    # A timeout cancels the generation.
    with ebca.load("shapes") as scope["engine"]:
        assert asyncio.run(scope["paint_for"](1e-3, "a red circle")) is None


def test_files_that_the_readme_links_to_exist() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (root / target).exists(), target
