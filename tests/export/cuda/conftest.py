"""What the tests of graphs for ONNX Runtime's CUDA provider share."""

import pytest
from helpers.cuda_standins.sessions import StandIns, stand_ins


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    """ONNX Runtime's CUDA provider over stand-ins; skips where it is not there."""
    return stand_ins(tmp_path_factory.mktemp("libraries"))
