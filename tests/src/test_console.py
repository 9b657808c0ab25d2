"""One-line errors, exit codes, warnings, and progress."""

import argparse
import io
import json
import logging
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ebca import console
from ebca.errors import EngineError, ParameterError


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _raise(error: BaseException) -> int:
    raise error


def test_the_result_of_the_body_is_the_exit_code() -> None:
    assert console.run("tool", lambda: 0) == 0
    assert console.run("tool", lambda: 3) == 3


def test_an_ebca_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run("tool", lambda: _raise(EngineError("it is broken;\n  mend it"))) == 1
    assert capsys.readouterr().err == "tool: error: it is broken; mend it\n"


def test_ctrl_c_prints_the_given_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run("tool", lambda: _raise(KeyboardInterrupt()), interrupted="run it again") == 130
    assert capsys.readouterr().err == "tool: run it again\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        console.run("tool", lambda: 1 // 0)


def test_warnings_are_one_line_and_the_handler_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning

    def body() -> int:
        warnings.warn("the prompt is long", stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert console.run("tool", body) == 0
    assert capsys.readouterr().err == "tool: warning: the prompt is long\n"
    assert warnings.showwarning is before


def test_each_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        for text in ("one", "two", "one", "two"):
            warnings.warn(text, stacklevel=1)
        warnings.warn("of interest to developers", DeprecationWarning, stacklevel=1)
        logging.getLogger("ebca.runtime").warning("three\n  and %s", "four")
        logging.getLogger("ebca.runtime").info("device: cpu")
        return 0

    logger = logging.getLogger("ebca")
    before = list(logger.handlers)
    # As ebca-bench calls its benchmarks.
    assert console.run("outer", lambda: console.run("tool", body)) == 0
    expected = "tool: warning: one\ntool: warning: two\ntool: warning: three and four\n"
    assert (capsys.readouterr().err, logger.handlers) == (expected, before)


def test_a_closed_pipe_is_quiet() -> None:
    program = (
        "import os, sys\n"
        "from ebca import console\n"
        "def body():\n"
        "    for line in range(100000): print(line)\n"
        "    return 0\n"
        "sys.exit(console.run('tool', body))\n"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_json_is_written_into_a_new_folder_and_replaces_a_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    for number in (1, 2):
        console.write_json(file, {"number": number})
        assert json.loads(file.read_text()) == {"number": number}
        assert list(file.parent.iterdir()) == [file]
    console.write_json("/dev/null", {})
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(ParameterError, match=r"the file '.*' cannot be written: Not a directory"):
        console.write_json(file / "x.json", {})


def named(folder: Path, *names: str) -> list[tuple[str, Path]]:
    return [(f"--{index}", folder / name) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        (("a.png", "a.png"), "--1 '{}/a.png' is the same file as --0 '{}/a.png'"),
        (("a.png", "new/../a.png"), "is the same file as --0"),
        (("input",), "--0 '{}/input' is the same file as --input '{}/input'"),
        (("hard",), "is the same file as --input"),
        (("soft",), "is the same file as --input"),
        (("through/input",), "is the same file as --input"),
        (("a.png", "b.png", "through/a.png"), "--2 '{}/through/a.png' is the same file as --0"),
        (("new/x.png", "new"), "--0 '{}/new/x.png' would lie in the file of --1"),
        (("folder",), "--0 '{}/folder' is a folder; name a file"),
        (("pipe",), "--0 '{}/pipe' is a device or a pipe; name a file"),
        (("input/x",), "--0 '{}/input/x' cannot be written: Not a directory"),
        (("x" * 300,), "cannot be written: File name too long; shorten its name"),
        ((f"new/{'x' * 300}/y",), "cannot be written: File name too long"),
    ],
)
def test_result_files_that_cannot_be_written_or_are_one_are_refused(
    tmp_path: Path, results: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "input").touch()
    (tmp_path / "hard").hardlink_to(tmp_path / "input")
    (tmp_path / "soft").symlink_to("input")
    (tmp_path / "through").symlink_to(".")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ParameterError) as refused:
        console.check_results(named(tmp_path, *results), [("--input", tmp_path / "input")])
    assert problem.replace("{}", str(tmp_path)) in str(refused.value)
    console.check_results(named(tmp_path, "a.png", "new/folder/b.png", "new/c.png"), [("--input", tmp_path / "input")])
    assert sorted(tmp_path.rglob("*")) == before


# --- standard output and standard error that cannot be written

PRINTS = """
import sys, warnings
from ebca import console

def body():
    for line in range(30000):
        print(line)
    console.notice("on standard error \U0001f981")
    warnings.warn("careful")
    open(sys.argv[1], "w").write("the result")
    return 0

sys.exit(console.run("tool", body))
"""


FULL = "tool: error: standard output cannot be written: No space left on device; result files are not affected"
CLOSED = "tool: error: standard output cannot be written: it is closed; result files are not affected"


@pytest.mark.parametrize(
    ("unbuffered", "redirected", "code", "shown"),
    [
        ("", ">/dev/full", 1, FULL),
        ("1", ">/dev/full", 1, FULL),
        ("", ">&-", 1, CLOSED),
        ("", ">&- 2>&-", 1, None),
        ("", "2>&- >/dev/null", 0, None),
        ("1", "2>/dev/full >/dev/null", 0, None),
        ("", ">/dev/full 2>/dev/full <&-", 1, None),
        ("", "| head -n 1; exit ${PIPESTATUS[0]}", 1, ""),
        ("1", "| head -n 1; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_output_that_cannot_be_written_loses_no_result(
    tmp_path: Path, unbuffered: str, redirected: str, code: int, shown: str | None
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PRINTS)
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$1" "$2" {redirected}', sys.executable, str(program), str(tmp_path / "result")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "result").read_text() == "the result"
    assert done.stdout == ("0\n" if "head" in redirected else "")
    if shown is None:
        assert done.stderr == ""
    else:
        lines = done.stderr.splitlines()
        assert lines[:2] == ["on standard error \U0001f981", "tool: warning: careful"]
        assert lines[2:] == [shown] * bool(shown)


def test_result_files_do_not_get_the_number_of_a_closed_standard_stream(tmp_path: Path) -> None:
    program = """
import os, sys
from ebca import console

def body():
    with open(sys.argv[1], "w") as file:
        # As a C library prints.
        for descriptor in (1, 2):
            os.write(descriptor, b"noise")
        file.write("the result")
    return 0

sys.exit(console.run("tool", body))
"""
    command = ["bash", "-c", '"$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, program, str(tmp_path / "result")]
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "result").read_text() == "the result"


def test_what_an_encoding_lacks_is_escaped() -> None:
    program = "from ebca import console; console.run('tool', lambda: print('l\\xf6we \\U0001f981 \\udce9') or 0)"
    for encoding, expected in (
        ("ascii", b"l\\xf6we \\U0001f981 \\udce9\n"),
        ("utf-8", "l\xf6we \U0001f981 \\udce9\n".encode()),
    ):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=env)
        assert (done.stdout, done.stderr) == (expected, b"")


# --- options


def usage_error(capsys: pytest.CaptureFixture[str], parser: console.Parser, *words: str) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--guidance", "7"], ["there is no option --guidance", "did you mean --guidance-scale?"]),
        (["--gamma", "7"], ["there is no option --gamma", "did you mean --gamma-attn or --gamma-norm?"]),
        (["--scale=7"], ["there is no option --scale", "did you mean --guidance-scale?"]),
        (["--ned", "x"], ["there is no option --ned", "did you mean --need?"]),
        (["-n", "x"], ["there is no option -n", "did you mean --need?"]),
        (["--quaint"], ["there is no option --quaint"]),
        ([], ["the following arguments are required: --need"]),
        (["--need", "x", "--guidance-scale", "much"], ["argument --guidance-scale: invalid float value: 'much'"]),
        (["--need", "x", "stray\nword"], ["unrecognized arguments: stray word"]),
        (["--need", "x", "--", "--guidance"], ["unrecognized arguments: -- --guidance"]),
    ],
)
def test_a_usage_error_names_the_closest_option(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: list[str]
) -> None:
    parser = console.Parser("tool", allow_abbrev=False)
    parser.add_argument("--need", required=True)
    parser.add_argument("--guidance-scale", "--guidance_scale", type=float)
    for name in ("attn", "norm"):
        parser.add_argument(f"--gamma-{name}")
    parser.add_argument("--quaint-old-name", help=argparse.SUPPRESS)
    error, *hints = usage_error(capsys, parser, *words)
    assert error == f"tool: error: {expected[0]}"
    assert hints == [*expected[1:], "see tool --help"]


def test_abbreviations_are_options_where_they_are_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = console.Parser("tool")
    parser.add_argument("--output-dir")
    assert parser.parse_args(["--out", "x"]).output_dir == "x"
    assert usage_error(capsys, parser, "--out", "x", "y")[0] == "tool: error: unrecognized arguments: y"


def test_paths_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(console.path(text)) for text in ("~/a.png", "~", "~a.png", "b/~", "-")] == [
        *("/home/me/a.png", "/home/me", "~a.png", "b/~", "-")
    ]
    assert [console.name_or_path(text) for text in ("shapes", "a//b", "~/engine")] == [
        "shapes",
        "a//b",
        "/home/me/engine",
    ]
    with pytest.raises(argparse.ArgumentTypeError, match="home of a user who does not exist"):
        console.path("~nobody-of-this-name/x")


def test_preparing_without_a_terminal_prints_a_first_and_a_last_line() -> None:
    stream = io.StringIO()
    with console.PrepareProgress(stream) as progress:
        for index, name in enumerate(("one", "two")):
            progress(index, 2, name)
        progress(2, 2, "")
        progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("preparing 2 components") and lines[1].startswith("prepared 2 components in ")
    assert len(lines) == 2 and progress.seconds is not None


def test_preparing_on_a_terminal_names_the_component() -> None:
    stream = _Terminal()
    with console.PrepareProgress(stream) as progress:
        progress(0, 1, "segment_00[x]")
        progress(1, 1, "")
    assert "prepared 1 component in" in stream.getvalue()
    assert "segment_00[x] (1 of 1)" in stream.getvalue()


def test_nothing_is_shown_if_nothing_is_prepared() -> None:
    stream = io.StringIO()
    with console.PrepareProgress(stream) as progress:
        pass
    assert stream.getvalue() == "" and progress.seconds is None


def test_an_interrupted_preparation_is_not_reported_as_prepared() -> None:
    stream = _Terminal()
    with pytest.raises(KeyboardInterrupt), console.PrepareProgress(stream) as progress:
        progress(0, 3, "segment_00")
        raise KeyboardInterrupt
    assert "prepared" not in stream.getvalue()
