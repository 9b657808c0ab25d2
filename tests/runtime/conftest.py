"""The built-in model, opened once per file; a file that needs another kind of engine has its own fixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import ebca


@pytest.fixture(scope="module")
def engine_dir(tiny_engine_dir: Path) -> Path:
    """The shared engine, prepared, so that no test sees the lines about preparing."""
    ebca.load(tiny_engine_dir, backend="onnxruntime").close()
    return tiny_engine_dir


@pytest.fixture(scope="module")
def engine(engine_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(engine_dir, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def session(engine: ebca.Engine) -> Iterator[ebca.Session]:
    with engine.session(64, 64) as session:
        yield session


@pytest.fixture(scope="module")
def xl_engine(tiny_xl_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(tiny_xl_dir, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def xl_session(xl_engine: ebca.Engine) -> Iterator[ebca.Session]:
    """Of the model's own size."""
    with xl_engine.session() as session:
        yield session
