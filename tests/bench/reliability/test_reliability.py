"""The checks of reliability, each with a small count, and with a fault that each must find."""

import json
from pathlib import Path
from typing import Any

import pytest

from ebca.bench.reliability import image
from ebca.bench.reliability.checks import damaged_files, growth, hostile_images, kills, manifests, threads
from ebca.bench.reliability.cli import main
from ebca.bench.reliability.table import CHECKS, Options
from ebca.runtime.images.inputs import load_images


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options("shapes", "onnxruntime", 1, 0, tmp_path)


def test_two_cold_starts_on_one_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main(["cold-starts", "--count", "1", "--output", str(report)]) == 0
    (found,) = json.loads(report.read_text())["checks"]
    assert found["failures"] == [] and len(found["image"]) == 64 and found["count"] == 1
    assert "cold-starts: 0 failures of 1" in capsys.readouterr().out


def test_a_kill_while_preparing(options: Options) -> None:
    found = kills.run(options)
    assert found["failures"] == [] and found["killed"] == 1


def test_another_image_after_a_kill_is_a_failure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([image.Made("right", ""), image.Made("wrong", ""), image.Made("", "it hangs")])
    monkeypatch.setattr(image, "make", lambda *_: next(made))
    monkeypatch.setattr(kills, "_prepared", lambda cache: 1)
    found = kills.run(Options(**{**vars(options), "count": 2}))
    assert [line.partition(": ")[2] for line in found["failures"]] == ["another image", "it hangs"]


def test_hostile_images(options: Options) -> None:
    found = hostile_images.run(Options(**{**vars(options), "count": 400}))
    assert found["failures"] == [] and found["images_read"] > 200 and found["refused"] > 200


def test_images_that_are_read_wrongly_are_failures(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_images, "load_images", lambda *given: load_images(*given)[:, ::-1])
    failures = hostile_images.run(Options(**{**vars(options), "count": 40}))["failures"]
    assert any(line.startswith("RGB in") and "images: is wrong by" in line for line in failures)


def test_damaged_files(options: Options) -> None:
    found = damaged_files.run(Options(**{**vars(options), "count": 12}))
    assert found["failures"] == [] and found["refused"] > 0


def test_manifests(options: Options) -> None:
    found = manifests.run(Options(**{**vars(options), "count": 250}))
    assert found["failures"] == [] and found["refused"] > 50 and found["images"] > 0


def test_a_changed_manifest_that_opens_is_a_failure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebca.engines.contract.digest.matches", lambda contents, digest: True)
    failures = manifests.run(Options(**{**vars(options), "count": 60}))["failures"]
    assert any(line.endswith(": it was changed, and opens") for line in failures)


def test_damage_that_nobody_sees_is_a_failure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damaged_files, "check_engine", lambda directory: ())
    assert len(damaged_files.run(Options(**{**vars(options), "count": 3}))["failures"]) == 3


def test_threads_and_growth(options: Options) -> None:
    assert threads.run(options)["failures"] == []
    found = growth.run(Options(**{**vars(options), "count": 4}))
    assert found["failures"] == [] and len(found["rss_bytes"]) == 5


def test_an_image_that_differs_between_threads_is_a_failure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(range(100))
    monkeypatch.setattr(threads, "digest", lambda session, seed: str(next(seen)))
    assert sorted(threads.run(options)["failures"]) == [f"thread {n}: image 0 differs" for n in range(8)]


def test_a_leak_is_a_failure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def leak(session: Any, seed: int) -> str:
        kept.append((bytearray(b"x" * (10 << 20)), Path("/dev/null").open()))  # noqa: SIM115
        return ""

    monkeypatch.setattr(growth, "digest", leak)
    try:
        failures = growth.run(Options(**{**vars(options), "count": 6}))["failures"]
    finally:
        for _, file in kept:
            file.close()
    assert any("memory grew" in line for line in failures) and any("descriptors grew" in line for line in failures)


def test_every_check_has_a_module_and_a_wrong_count_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(callable(check.run) for check in CHECKS)
    with pytest.raises(SystemExit):
        main(["kills", "--count", "0"])
    assert "invalid count value: '0'" in capsys.readouterr().err
