"""kill -9 at any moment leaves nothing that opens and is wrong, and the next export finishes to the same bytes."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers import kills

from ebca.engines.contract import manifest as manifests
from ebca.errors import ExportError
from ebca.export.output import HOUSEKEEPING, TRACES


@dataclass(frozen=True)
class Uninterrupted:
    """An export that nobody interrupts: how it is made, its moments, and what it leaves."""

    export: kills.Export
    moments: int
    engine: Path

    @property
    def files(self) -> dict[str, str]:
        return kills.files(self.engine)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    engine = tmp_path_factory.mktemp("uninterrupted") / "engine"
    with pytest.MonkeyPatch.context() as monkeypatch:
        export = kills.quick_unet_export(monkeypatch)
        yield Uninterrupted(export, kills.moments(export, engine), engine)


def test_a_killed_export_is_finished_by_the_next(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """One moment is among the last, around the rename; `python tests/helpers/kills.py 200` takes more."""
    expected = uninterrupted.files
    assert not {name for name in expected if name in HOUSEKEEPING or name.startswith(TRACES)}
    moments = [uninterrupted.moments // 2, uninterrupted.moments - 6]
    done = kills.kill_many(uninterrupted.export, tmp_path, moments, expected)
    assert [kill.left for kill in done] == ["engine.partial", "engine"]


def test_moments_are_chosen_from_all() -> None:
    assert kills.choose(180, 200) == list(range(180))
    chosen = kills.choose(180, 20)
    assert len(chosen) == 20 and {*range(170, 180)} < {*chosen} and chosen[0] < 60


def test_a_complete_engine_that_a_kill_left_untidy_is_tidied(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """And so is the engine that it was about to replace."""
    output = shutil.copytree(uninterrupted.engine, tmp_path / "engine")
    (output / TRACES).mkdir()
    for name in (*HOUSEKEEPING, f"{TRACES}/unet.onnx"):
        (output / name).write_text("{}")
    (tmp_path / ".engine.123.old").mkdir()
    (tmp_path / ".engine.123.old" / manifests.FILE_NAME).write_text("{}")
    with pytest.raises(ExportError, match="holds an engine already"):
        uninterrupted.export(output)
    assert kills.files(output) == uninterrupted.files
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
