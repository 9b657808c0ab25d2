"""kill -9 at any moment leaves nothing that opens and is wrong, and the next export finishes to the same bytes."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers import kills

from ebca.engines.contract import manifest as manifests
from ebca.errors import ExportError
from ebca.export.output import HOUSEKEEPING, TRACES


def test_a_killed_export_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the moments are the last ones, around the rename; `python tests/helpers/kills.py 200` takes more."""
    export = kills.quick_unet_export(monkeypatch)
    total = kills.moments(export, tmp_path / "engine")
    expected = kills.files(tmp_path / "engine")
    assert not {name for name in expected if name in HOUSEKEEPING or name.startswith(TRACES)}
    assert len(kills.kill_many(export, tmp_path, kills.choose(total, 4, seed=1), expected)) == 4


def test_a_complete_engine_that_a_kill_left_untidy_is_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is the engine that it was about to replace."""
    export = kills.quick_unet_export(monkeypatch)
    output = tmp_path / "engine"
    export(output)
    complete = kills.files(output)
    (output / TRACES).mkdir()
    for name in (*HOUSEKEEPING, f"{TRACES}/unet.onnx"):
        (output / name).write_text("{}")
    (tmp_path / ".engine.123.old").mkdir()
    (tmp_path / ".engine.123.old" / manifests.FILE_NAME).write_text("{}")
    with pytest.raises(ExportError, match="holds an engine already"):
        export(output)
    assert kills.files(output) == complete
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
