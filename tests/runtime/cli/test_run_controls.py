"""ControlNets on the command line of ebca-run: what the request is, and one run."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.errors import ParameterError
from ebca.runtime.cli import prompts_file
from ebca.runtime.cli import run as cli
from ebca.runtime.cli.job import Job
from ebca.runtime.cli.run_parser import parser

COMMON = ("--engine", "shapes", "--prompt", "a cat")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("edges.png", "depth.png", "a:2"):
        Image.new("RGB", (96, 64), (9, 200, 30)).save(name, "PNG")
    return tmp_path


def options(*argv: str) -> argparse.Namespace:
    return parser().parse_args([*COMMON, *argv])


def asked(*argv: str) -> list[tuple[Any, ...]]:
    controls = Job.of(options(*argv)).asked.controlnets.each
    return [(one.name, one.image, one.scale, one.start, one.end) for one in controls]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", []),
        ("--control edges.png", [(None, "edges.png", 1.0, 0.0, 1.0)]),
        ("--control edges.png:0.5", [(None, "edges.png", 0.5, 0.0, 1.0)]),
        ("--control canny=edges.png:-.25 --control-end 0.7", [("canny", "edges.png", -0.25, 0.0, 0.7)]),
        ("--control a:2", [(None, "a:2", 1.0, 0.0, 1.0)]),
        ("--control x=a:2", [("x", "a:2", 1.0, 0.0, 1.0)]),
        ("--control x=a:2:3", [("x", "a:2", 3.0, 0.0, 1.0)]),
        (
            "--control canny=edges.png --control depth=depth.png:2 --control-start 0 0.5 --control-end 0.9",
            [("canny", "edges.png", 1.0, 0.0, 0.9), ("depth", "depth.png", 2.0, 0.5, 0.9)],
        ),
    ],
)
def test_options_are_fields_of_the_request(argv: str, expected: list[Any]) -> None:
    assert asked(*argv.split()) == expected


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--control-end 0.5", "--control-end needs --control; give one"),
        ("--control canny=", "--control is 'canny='; write canny=edges.png"),
        ("--control edges.png --control-start 0 0.1", "--control-start has 2 values for 1 --control; give one"),
        ("--control missing.png", "missing.png"),
        ("--control edges.png --steps 1", "this engine has no ControlNet, and `control` is given; export it with"),
        ("--control edges.png --output edges.png", "--output 'edges.png' is the same file as --control 'edges.png'"),
    ],
)
def test_what_is_wrong_is_one_line(argv: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*COMMON, "--quiet", *argv.split()]) != 0
    errors = [one for one in capsys.readouterr().err.splitlines() if one]
    assert len(errors) == 1 and line in errors[0]


def test_a_line_of_a_file_has_controls_of_files(here: Path) -> None:
    (here / "prompts.txt").write_text('{"prompt": "a", "control": [{"image": "edges.png", "scale": 0.5}]}\n')
    (line,) = prompts_file.read(here / "prompts.txt")
    (control,) = line.request_fields()["control"]
    assert (control.image, control.scale) == ("edges.png", 0.5)
    (here / "prompts.txt").write_text('{"prompt": "a", "control": [{"image": [[1, 2]]}]}\n')
    with pytest.raises(ParameterError, match="the image of a control is"):
        prompts_file.read(here / "prompts.txt")[0].request_fields()


def test_a_run_records_what_repeats_it(tiny_controlled_dir: Path) -> None:
    run = ["--engine", str(tiny_controlled_dir), "--prompt", "a cat", "--steps", "2", "--seed", "3", "--quiet"]
    run += ["--control", "canny=edges.png:0.5", "--output", "first.png", "--backend", "onnxruntime"]
    assert cli.main(run) == 0
    recorded = ebca.read_parameters("first.png")
    assert recorded["control"] == [{"scale": 0.5, "start": 0.0, "end": 1.0, "name": "canny"}]
    # About the model's size, 128 x 128, with the aspect ratio of the control image.
    assert (recorded["height"], recorded["width"]) == (104, 160)
    assert cli.main(["--from-image", "first.png", "--output", "second.png", "--quiet"]) == 0
    assert (
        cli.main(["--from-image", "first.png", "--control", "depth=depth.png", "--output", "other.png", "--quiet"]) == 0
    )
    first, second, other = (np.asarray(Image.open(name)) for name in ("first.png", "second.png", "other.png"))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
