"""ebca-serve as a process: its start, its end, and what it refuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ebca.runtime.serving import cli

COMMAND = (sys.executable, "-m", "ebca.runtime.serving.cli")
REQUEST = {"prompt": "a red circle", "seed": 1, "steps": 5}


def served(folder: Path, *words: str) -> tuple["subprocess.Popen[str]", httpx.Client]:
    process = subprocess.Popen(
        [*COMMAND, "--engine", "shapes", "--port", "0", "--data-dir", str(folder), *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("serving http"):
            return process, httpx.Client(base_url=line.split()[1], timeout=60)
    raise AssertionError("it did not start")


def test_it_ends_when_running_jobs_are_done_and_goes_on_at_the_next_start(tmp_path):
    process, client = served(tmp_path / "data")
    long = {**REQUEST, "steps": 60}
    first, second = (client.post("/v1/generate", json=long).headers["location"] for _ in range(2))
    with client.stream("GET", f"{first}/events") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("event: progress"))
        process.send_signal(signal.SIGTERM)
        assert "event: done" in list(lines)
    assert process.wait(20) == 0
    records = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert all(record["level"] == "info" for record in records)
    process, client = served(tmp_path / "data")
    with client.stream("GET", f"{second}/events") as stream:
        assert "event: done" in list(stream.iter_lines())
    assert client.get(first).json()["state"] == "done"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--limit-queue", "0"], "--limit-queue is 0"),
        (["--limit-seconds", "nan"], "--limit-seconds is nan"),
        (["--api-key-file", "/nowhere"], "the key file '/nowhere' cannot be read"),
        (["--engine", "nowhere"], "nowhere"),
        (["--data-dir", "/proc/data"], "the data folder '/proc/data' cannot be used"),
        (["--host", "256.0.0.1"], "the address 256.0.0.1:8017 cannot be used"),
        (["--port", "99999"], "99999 cannot be used"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, tmp_path, words, text):
    assert cli.main(["--engine", "shapes", "--device", "cpu", "--data-dir", str(tmp_path), *words]) == 1
    assert text in capsys.readouterr().err


def test_the_extra_is_named_if_it_is_missing(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ebca.runtime.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("ebca.runtime.serving.http.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["--engine", "shapes"]) == 1
    assert "pip install 'ebca[serve]'" in capsys.readouterr().err


def test_ebca_alone_needs_none_of_it():
    program = "import sys, ebca, ebca.runtime.serving.service, ebca.runtime.serving.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"fastapi", "starlette", "uvicorn", "prometheus_client", "ray", "pydantic"} & set(found)
