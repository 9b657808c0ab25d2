"""Subjects and regions on the command line of ebca-run: what the request is, without running it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ebca
from ebca.runtime.cli import prompts_file
from ebca.runtime.cli import run as cli
from ebca.runtime.cli.job import Job
from ebca.runtime.cli.run_parser import parser
from ebca.runtime.cli.run_repeat import filled
from ebca.runtime.conditioning.subjects import Subjects
from ebca.runtime.images.files import save_image
from ebca.runtime.request.inputs import recorded
from ebca.runtime.request.serialization import to_json

COMMON = ("--engine", "shapes", "--prompt", "a cat and a dog")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64), 255).save("mask.png")
    return tmp_path


def options(*argv: str) -> argparse.Namespace:
    return parser().parse_args([*COMMON, *argv])


def asked(*argv: str) -> Subjects:
    return Job.of(options(*argv)).asked.subject


def test_options_are_fields_of_the_request() -> None:
    assert asked() == Subjects()
    assert asked("--subjects") == asked("--subjects", "auto") == Subjects("auto")
    assert asked("--subjects", "cat", "dog") == Subjects(["cat", "dog"])
    given = asked(
        *("--region", "cat=mask.png", "--region", " a dog = 0.1,0.2, 0.5,1", "--subject-window", "0.3"),
        *("--subject-exclusion", "reverse_step:2:0.5", "--subject-balance", "0", "1", "2"),
    )
    assert given.regions == {"cat": "mask.png", "a dog": (0.1, 0.2, 0.5, 1)} and given.subjects is None
    assert given.subject_exclusion == ebca.Schedule.reverse_step(2, 0.5)
    assert (given.subject_balance, given.subject_window) == ([0, 1, 2], 0.3)
    assert asked("--subjects", "--subject-balance", "2").subject_balance == 2


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--subject-exclusion 2", "--subject-exclusion needs --subjects or --region; give one of them"),
        ("--subject-window 2", "--subject-window needs --subjects or --region"),
        ("--subjects --subject-balance 1 step:1:0.5", "--subject-balance has a schedule among several values"),
        ("--region cat", "--region is 'cat'; write"),
        ("--region =a.png", "--region is '=a.png'"),
        ("--region cat=a.png --region cat=b.png", "--region names 'cat' twice"),
        ("--subjects --image mask.png --source-prompt x", "--source-prompt and --subjects do not go together"),
        ("--region cat=0,0,1,1 --image mask.png --source-prompt x", "--source-prompt and --region do not go together"),
    ],
)
def test_what_does_not_go_together_is_one_line(here: Path, argv: str, line: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        asked(*argv.split())
    assert line in str(caught.value)


def test_a_mask_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("mask.png").read_bytes()
    assert cli.main([*COMMON, "--region", "cat=mask.png", "--output", "mask.png", "--quiet"]) == 1
    assert "--output 'mask.png' is the same file as --region 'mask.png'" in capsys.readouterr().err
    assert Path("mask.png").read_bytes() == before


def test_an_image_file_repeats_its_subjects(here: Path) -> None:
    """What `Result.parameters` has, as an option or its replacement."""
    job = Job.of(options("--subjects", "--region", "dog=mask.png", "--region", "cat=0,0,1,1", "--subject-balance", "3"))
    stored: dict[str, Any] = {"engine": "shapes", **to_json(job.asked, embedded=False), "subjects": ["cat", "dog"]}
    stored["inputs"] = recorded(job.asked)
    save_image(Image.new("RGB", (8, 8)), Path("made.png"), stored)

    def repeated(*argv: str) -> tuple[Subjects, list[Path]]:
        p, given = parser(), ["--from-image", "made.png", *argv]
        found = Job.of(filled(p, p.parse_args(given), given))
        return found.asked.subject, found.input_files

    regions = {"dog": "mask.png", "cat": (0.0, 0.0, 1.0, 1.0)}
    same = Subjects(["cat", "dog"], regions, subject_balance=3.0)
    assert repeated() == (same, [Path("mask.png")])
    assert repeated("--subjects")[0] == Subjects("auto", regions, subject_balance=3.0)
    assert repeated("--subject-window", "0.3")[0].subject_window == 0.3
    assert repeated("--region", "cat=0,0,0.5,1") == (
        Subjects(["cat", "dog"], {"cat": (0, 0, 0.5, 1)}, subject_balance=3.0),
        [],
    )


def lines(*fields: dict[str, Any]) -> list[Subjects]:
    Path("prompts.txt").write_text("\n".join(map(json.dumps, fields)), encoding="utf-8")
    args = parser().parse_args(["--engine", "shapes", "--prompts-file", "prompts.txt", "--subject-window", "0.3"])
    read = prompts_file.read(Path("prompts.txt"))
    return [Job.of(line.options(args, n), n, line.request_fields()).asked.subject for n, line in enumerate(read, 1)]


def test_lines_of_a_file_have_subjects_of_their_own(here: Path) -> None:
    found = lines(
        {"prompt": "a cat and a dog", "subjects": "auto", "subject_balance": "step:1:0.5"},
        {"prompt": "a cat and a dog", "regions": {"cat": [0, 0, 0.5, 1], "dog": "mask.png"}},
        {"prompt": "a cat"},
    )
    assert found[0] == Subjects("auto", subject_balance=ebca.Schedule.step(1, 0.5), subject_window=0.3)
    assert found[1].regions == {"cat": (0, 0, 0.5, 1), "dog": "mask.png"}
    assert found[2] == Subjects(subject_window=0.3)
    with pytest.raises(
        ebca.ParameterError, match=r"the region of 'cat' is \[\[1, 0\]\]; give the file of a mask, or a"
    ):
        lines({"prompt": "a cat", "regions": {"cat": [[1, 0]]}})
