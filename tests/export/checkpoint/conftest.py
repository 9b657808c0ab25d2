"""The built-in model, as a checkpoint and as a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.checkpoints import Hub

if TYPE_CHECKING:
    from ebca.export.checkpoint.model import Checkpoint


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers format. Shared: do not change it."""
    from ebca.export.checkpoint.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    from ebca.export.checkpoint.tiny import build_tiny

    return build_tiny()


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], Hub]:
    from ebca.export.checkpoint import hub

    def install(stand_in: Hub) -> Hub:
        monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
        monkeypatch.setattr(hub, "snapshot_download", stand_in.snapshot_download)
        return stand_in

    return install
