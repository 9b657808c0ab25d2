"""The bundled engine, opened once per file."""

from collections.abc import Iterator

import pytest

import ebca


@pytest.fixture(scope="module")
def engine() -> Iterator[ebca.Engine]:
    with ebca.load("shapes", backend="onnxruntime") as opened:
        yield opened
