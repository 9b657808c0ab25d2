"""The tiny engine, and how to read its weights."""

from pathlib import Path

import pytest

from ebca.engines.contract.directory import EngineDirectory, open_directory


@pytest.fixture(scope="session")
def base(tiny_engine_dir: Path) -> EngineDirectory:
    return open_directory(tiny_engine_dir)
