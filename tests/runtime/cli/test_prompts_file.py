"""ebca-run --prompts-file: many prompts with one engine, all checked first, each finished once."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.cli import run as cli
from ebca.runtime.images.files import read_parameters

COMMON = ["--engine", "shapes", "--backend", "onnxruntime", "--steps", "2"]


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    """No test sees the lines about preparing."""
    ebca.load("shapes", backend="onnxruntime").close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*lines: str | dict[str, Any]) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("prompts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> tuple[list[str], list[str]]:
    """The lines of standard output and standard error."""
    assert cli.main([*COMMON, "--prompts-file", "prompts.txt", *more]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


def test_each_line_makes_the_image_that_its_options_make(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "# comment",
        "a red circle",
        "",
        {"prompt": "a green star", "seed": [5, 6], "gamma_attn": 0.01, "negative_prompt": "blue", "steps": 3},
        {"prompt": "a blue square", "height": 96, "output": "{slug}.png", "seed": 5, "scheduler": None},
        "  a red circle\r",
    )
    out, err = run(capsys, "--output-dir", "new/images", "--gamma-norm", "0.003")
    assert err == []
    assert out == [
        "wrote new/images/0001-a-red-circle-1.png",
        "wrote new/images/0004-a-red-circle-4.png",
        "wrote new/images/0002-a-green-star-5.png",
        "wrote new/images/0002-a-green-star-6.png",
        "wrote new/images/a-blue-square.png",
    ]
    alone = [*COMMON, "--gamma-norm", "0.003", "--output", "alone.png"]
    assert cli.main([*alone, "--prompt", "a red circle", "--seed", "4"]) == 0
    assert np.array_equal(pixels("alone.png"), pixels("new/images/0004-a-red-circle-4.png"))
    more = ["--seed", "5", "6", "--gamma-attn", "0.01", "--negative-prompt", "blue", "--steps", "3"]
    assert cli.main([*alone, "--prompt", "a green star", *more]) == 0
    assert np.array_equal(pixels("alone-1.png"), pixels("new/images/0002-a-green-star-6.png"))
    assert (
        read_parameters(Path("alone-1.png"))["gamma_norm"]
        == read_parameters(Path("new/images/0002-a-green-star-6.png"))["gamma_norm"]
    )
    assert pixels("new/images/a-blue-square.png").shape == (96, 64, 3)


def test_the_same_command_makes_only_what_is_missing_or_different(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    write("a", "b", {"prompt": "c", "image": "red.png", "strength": 0.5}, {"prompt": "d", "seed": [1, 2]})
    first = run(capsys)[0]
    assert len(first) == 5
    assert run(capsys) == ([], ["4 of 4 prompts have their images already"])
    # Missing, cut short, of another program, and older than what it was made from.
    Path("0001-a-1.png").unlink()
    Path("0004-d-2.png").write_bytes(Path("0004-d-2.png").read_bytes()[:3000])
    Image.new("RGB", (64, 64), "red").save("0002-b-2.png")
    os.utime("red.png")
    assert sorted(run(capsys, "--quiet")[0]) == sorted(first)
    write("a", {"prompt": "b", "gamma_norm": 0.1}, {"prompt": "c", "image": "red.png", "strength": 0.6})
    assert run(capsys, "--quiet")[0] == ["wrote 0002-b-2.png", "wrote 0003-c-3.png"]
    assert run(capsys, "--quiet", "--attention-maps", "maps/{number}.png")[0][:2] == [
        "wrote 0001-a-1.png",
        "wrote maps/1.png",
    ]


def test_a_prompt_that_fails_does_not_stop_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("# first", "a", {"prompt": "b", "gamma_attn": 1e30}, "c")
    out, err = run(capsys, "--json", "--output-dir", "x", code=1)
    reports = [json.loads(line) for line in out]
    assert [(r["line"], r["number"], r.get("files")) for r in reports] == [
        *((2, 1, ["x/0001-a-1.png"]), (3, 2, None), (4, 3, ["x/0003-c-3.png"]))
    ]
    assert reports[0]["parameters"] | {"image_index": 0} == read_parameters(Path("x/0001-a-1.png"))
    assert reports[1]["error"] in err[0] and err[0].startswith("ebca-run: error: line 3: the result at timestep")
    assert err[1:] == ["ebca-run: error: 1 of 3 prompts failed: line 3; the same command tries only these again"]
    out, err = run(capsys, "--json", "--output-dir", "x", code=1)
    assert [json.loads(line).get("skipped", False) for line in out] == [True, True, False]
    out, err = run(capsys, "--stop-on-error", "--output-dir", "y", code=1)
    assert out == ["wrote y/0001-a-1.png"]
    assert len(err) == 1 and err[0].startswith("ebca-run: error: line 3: the result at timestep")


def test_warnings_name_their_line_and_are_not_repeated(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("very " * 80 + "old", "b", "very " * 90 + "old")
    err = run(capsys, "--no-long-prompts")[1]
    assert [line.partition(";")[0] for line in err] == [
        "ebca-run: warning: line 1: the prompt is longer than 22 tokens",
        "ebca-run: warning: line 3: the prompt is longer than 22 tokens",
    ]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([{"prompt": "a", "steps": 0}], ["line 2 of 'prompts.txt': steps is 0"]),
        (
            [{"prompt": "a", "steps": 0}, {"prompt": "a", "stepz": 1}, {"prompt": "a", "seed": "1"}],
            [
                "line 3 of 'prompts.txt': there is no field 'stepz'; did you mean steps?",
                "line 4 of 'prompts.txt': seed is '1'; give a whole number",
            ],
        ),
        ([{"prompt": "a", "gamma_attn": [1, 2]}], ["line 2 of 'prompts.txt': gamma_attn has 2 values, but"]),
        ([{"prompt": "a", "token_weights": {"dog": 2}}], ["line 2 of 'prompts.txt': the word 'dog' is not in"]),
        ([{"prompt": "a", "token_weights": [[99, 2]]}], ["line 2 of 'prompts.txt': token_weights names position 99"]),
        ([{"prompt": "a", "height": 101}], ["line 2 of 'prompts.txt': height is 101"]),
        ([{"prompt": "a", "image": "none.png"}], ["line 2 of 'prompts.txt': image 'none.png' does not exist"]),
        ([{"prompt": "a", "image": "x\0y"}], ["line 2 of 'prompts.txt': image has a zero byte"]),
        ([{"prompt": "a", "output": "x.gif"}], ["line 2: --output 'x.gif' has the suffix '.gif'"]),
        (
            [{"prompt": "a", "output": "x.png"}, {"prompt": "b", "output": "./x.png"}],
            ["line 3: --output 'x.png' is the"],
        ),
        ([{"prompt": "a", "output": "prompts.txt/x.png"}], ["line 2: --output 'prompts.txt/x.png' cannot be written"]),
        ([{"prompt": "\ud800"}], ["line 2 of 'prompts.txt': the prompt '\\ud800' is not valid Unicode"]),
        ([{"prompt": "a", "latents": [1]}], ["line 2 of 'prompts.txt': there is no field 'latents'"]),
        ([{"prompt": ["a"]}], ["line 2 of 'prompts.txt': prompt is ['a']; give a text"]),
        ([{"steps": 2}], ["line 2 of 'prompts.txt': it has no prompt"]),
        (["{a|b} cat"], ["line 2 of 'prompts.txt': it is not JSON"]),
        (['{"prompt": "a", "prompt": "b"}'], ["line 2 of 'prompts.txt': it is not JSON: it has 'prompt' twice"]),
        (["{" * 5000], ["line 2 of 'prompts.txt': it is not JSON"]),
    ],
)
def test_every_line_is_checked_before_anything_is_computed(
    here: Path, capsys: pytest.CaptureFixture[str], lines: list[str | dict[str, Any]], named: list[str]
) -> None:
    write("fine", *lines)
    out, err = run(capsys, code=1)
    assert out == []
    for line, expected in zip(err, named, strict=True):
        assert line.startswith(f"ebca-run: error: {expected}")
    assert list(Path().iterdir()) == [Path("prompts.txt")]


def test_a_wrong_option_is_reported_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a", "b", "c")
    assert run(capsys, "--steps", "0", code=1)[1] == ["ebca-run: error: steps is 0; give a whole number of at least 1"]
    assert run(capsys, "--output", "x.png", code=1)[1] == [
        "ebca-run: error: line 2: --output 'x.png' is the same file as line 1: --output 'x.png'; name another file"
    ]


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        (b"", "'prompts.txt' has no prompt; write one per line"),
        (b"# only\n\n", "'prompts.txt' has no prompt; write one per line"),
        ("a\nb".encode("utf-16"), "line 1 of 'prompts.txt': it is not UTF-8 text; save the file as UTF-8"),
        (b"a\nL\xf6we\n", "line 2 of 'prompts.txt': it is not UTF-8 text; save the file as UTF-8"),
        (None, "--prompts-file 'prompts.txt' cannot be read: Is a directory; check the path"),
    ],
)
def test_files_that_are_none_of_prompts_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], contents: bytes | None, named: str
) -> None:
    Path("prompts.txt").mkdir() if contents is None else Path("prompts.txt").write_bytes(contents)
    assert run(capsys, code=1) == ([], [f"ebca-run: error: {named}"])


def test_prompts_come_from_standard_input(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffein Löwe\r\nzwei\r\n".encode())))
    assert cli.main([*COMMON, "--prompts-file", "-", "--output", "{number}-{index}.png"]) == 0
    assert capsys.readouterr() == ("wrote 1-0.png\nwrote 2-0.png\n", "")
    assert read_parameters(Path("1-0.png"))["prompt"] == "ein Löwe"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_continues_after_an_interruption(
    here: Path, capsys: pytest.CaptureFixture[str], stop: signal.Signals
) -> None:
    write(*(f"prompt {n}" for n in range(40)))
    command = [sys.executable, "-m", "ebca.runtime.cli.run", *COMMON, "--prompts-file", "prompts.txt", "--steps", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    made = [line.removeprefix("wrote ") for line in [first.rstrip("\n"), *out.splitlines()]]
    if stop == signal.SIGINT:
        said = "ebca-run: interrupted; {} of 40 prompts are done; run the same command again to continue\n"
        # The last one may have been written, but not announced.
        assert err in (said.format(len(made)), said.format(len(made) + 1))
    before = {file: Path(file).stat().st_mtime_ns for file in made}
    write(*(f"prompt {n}" for n in range(len(made) + 1)))
    out_lines, err_lines = run(capsys, "--steps", "20")
    assert len(out_lines) <= 1 and err_lines[0].endswith(f"of {len(made) + 1} prompts have their images already")
    assert {file: Path(file).stat().st_mtime_ns for file in made} == before
