"""The command-line tools as processes whose standard streams are closed, full, or read by nobody."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import ebca
from ebca.runtime.images.files import read_parameters

RUN = "ebca.runtime.cli.run --engine shapes --backend onnxruntime --steps 1 --seed 1"
TOOLS = {
    "ebca-run": RUN,
    "ebca-doctor": "ebca.runtime.cli.doctor",
    "ebca-bench": "ebca.bench.cli",
    "ebca-export": "ebca.export.cli",
}


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    ebca.load("shapes", backend="onnxruntime").close()


def shell(folder: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """`python` is this interpreter; the exit code is that of the last pipe's start."""
    line = f'python() {{ "{sys.executable}" -m "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("redirected", "code", "err"),
    [
        (">&-", 1, "ebca-run: error: standard output cannot be written: it is closed; result files are not affected\n"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 1, ""),
        (
            "--json >/dev/full",
            1,
            "ebca-run: error: standard output cannot be written: No space left on device; "
            "result files are not affected\n",
        ),
        ("--precision fp32 2>/dev/full", 0, ""),
        ("| true", 1, ""),
    ],
)
def test_an_image_is_written_whatever_becomes_of_the_output(
    tmp_path: Path, redirected: str, code: int, err: str
) -> None:
    # A long prompt gives a warning on standard error.
    done = shell(tmp_path, f"python {RUN} --prompt '{'a red circle ' * 40}' {redirected}")
    assert done.returncode == code or ("| true" in redirected and done.returncode in (0, 1))
    assert read_parameters(tmp_path / "ebca.png")["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ebca.png"]
    lines = done.stderr.splitlines(keepends=True)
    assert "".join(line for line in lines if "warning: the prompt is longer than" not in line) == err
    # Nothing meant for standard error is on standard output.
    assert done.stdout in ("", "wrote ebca.png\n")


def test_all_prompts_are_made_although_the_reader_of_the_output_is_gone(tmp_path: Path) -> None:
    done = shell(tmp_path, f"printf 'a\\nb\\nc\\n' > p; python {RUN} --prompts-file p --json | head -n 1 > first")
    assert (done.returncode, done.stderr) == (1, "")
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert (tmp_path / "first").read_text().count("\n") == 1


def test_two_results_in_one_file_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    (tmp_path / "link.png").hardlink_to(tmp_path / "in.png")
    done = shell(tmp_path, f"python {RUN} --prompt x --image in.png --strength 1 --output link.png")
    assert done.returncode == 1
    assert (
        done.stderr == "ebca-run: error: --output 'link.png' is the same file as --image 'in.png'; name another file\n"
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_ends_without_a_traceback(tmp_path: Path, tool: str) -> None:
    if tool == "ebca-export" and find_spec("torch") is None:
        pytest.skip("the export needs PyTorch")
    python = f"python {TOOLS[tool]}"
    done = shell(
        tmp_path,
        f"{python} --version; {python} --help >/dev/full; echo $?; {python} --nonsense >&-",
    )
    version, code = done.stdout.splitlines()
    assert version.startswith(f"ebca {ebca.__version__} (Python 3.")
    assert ("torch " if tool == "ebca-export" else "numpy ") in version
    assert (code, done.returncode) == ("1", 2)
    full, error, hint = done.stderr.splitlines()
    assert full.endswith("No space left on device; result files are not affected")
    assert (error, hint) == (f"{tool}: error: there is no option --nonsense", f"see {tool} --help")


def test_findings_and_times_are_not_lost_without_a_word(tmp_path: Path) -> None:
    doctor, bench = "python ebca.runtime.cli.doctor", "python ebca.bench.cli startup --repeats 1"
    done = shell(
        tmp_path, f"{doctor} --json new/d.json >/dev/full; echo $?; {doctor} --json a/b 2>/dev/null >&-; echo $?"
    )
    assert done.stdout == "1\n1\n"
    assert done.stderr.startswith("ebca-doctor: error: standard output cannot be written: No space left on device;")
    assert (tmp_path / "new" / "d.json").is_file() and (tmp_path / "a" / "b").is_file()
    done = shell(tmp_path, f"{bench} --json new/d.json/x")
    assert done.returncode == 1
    assert done.stderr.startswith("ebca-bench startup: error: --json 'new/d.json/x' cannot be written: Not a directory")
