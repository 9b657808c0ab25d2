"""The graphs of Stable Diffusion 1.5, its inpainting form, 2 and XL at full size, made without weights, in ONNX
Runtime's CUDA provider: every node on the GPU, and no more of them than there were."""

import os
from collections.abc import Mapping

import pytest

pytest.importorskip("torch")

from helpers.cuda_standins import models
from helpers.cuda_standins.inspection import Report
from helpers.cuda_standins.models import FULL_SIZE
from helpers.cuda_standins.sessions import StandIns

pytestmark = pytest.mark.slow
Reports = Mapping[str, Mapping[str, Report]]

_SLOW = "EBCA_SLOW_TESTS" in os.environ
_takes_minutes = pytest.mark.skipif(not _SLOW, reason="takes minutes: set EBCA_SLOW_TESTS=1")
_of_each = pytest.mark.parametrize(
    "model", [pytest.param(name, marks=_takes_minutes) if name == "sdxl" else name for name in FULL_SIZE]
)


@pytest.fixture(scope="module")
def opened(opener: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Architecture -> component -> what became of its graph."""
    folder = tmp_path_factory.mktemp("graphs")
    jobs = models.full_sizes(folder, [name for name in FULL_SIZE if _SLOW or name != "sdxl"])
    reports = iter(opener.inspect([job for parts in jobs.values() for job in parts.values()], folder))
    return {model: {name: next(reports) for name in parts} for model, parts in jobs.items()}


@_of_each
def test_every_node_runs_on_the_gpu(opened: Reports, model: str) -> None:
    assert opened[model]
    for name, report in opened[model].items():
        assert (report.error, report.host, report.copies) == (None, {}, 0), name


@_of_each
def test_no_graph_has_more_nodes_or_transposes_than_before(opened: Reports, model: str) -> None:
    assert models.worse(model, opened[model]) == {}


def test_inpainting_differs_in_the_first_convolution_only(opened: Reports) -> None:
    assert opened["sd-1.5-inpainting"].keys() == {"segment_00", "vanilla"}
