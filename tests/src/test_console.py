"""One-line errors, exit codes, warnings, and progress."""

import io
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


def test_writing_json_to_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="folder that exists"):
        console.write_json(tmp_path / "missing" / "file.json", {})


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
