"""A small load, and what a load would find."""

import argparse
import asyncio
from pathlib import Path

import pytest

import ebca
from ebca.bench.serving import cli, load


@pytest.mark.slow
def test_nothing_is_lost_or_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["--requests", "200", "--connections", "16", "--steps", "1", "--rounds", "2", "--json", str(report)]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "p99" in shown.out and shown.err.count("error") == 0
    assert '"jobs made": 200' in report.read_text()


def test_a_wrong_image_is_found() -> None:
    asked = load.requests(4, 1)
    with ebca.load("shapes", device="cpu") as engine:
        files, _ = load.direct(engine, asked)
    options = argparse.Namespace(url=None, engine="shapes", workers=1, max_batch=1)
    good, wrong = load.Found(), load.Found()
    with cli._service(options) as (address, _):
        asyncio.run(load.load(address, asked, files, good, calls=range(8), connections=2))
        asyncio.run(load.load(address, asked, [b"", *files[1:]], wrong, calls=range(8), connections=2))
    assert good.wrong == [] and set(good.ways) == set(load.WAYS)
    assert len(wrong.wrong) == 2 and all("another image" in line for line in wrong.wrong)


@pytest.mark.parametrize("flag", ["--requests", "--connections", "--rounds", "--steps", "--workers", "--max-batch"])
def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert cli.main([flag, "0"]) == 1
    shown = capsys.readouterr().err
    assert flag in shown and len(shown.splitlines()) == 1
