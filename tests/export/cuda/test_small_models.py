"""The graphs of `tiny` and `shapes` in ONNX Runtime's CUDA provider: every node on the GPU, and no more of them than
there were."""

from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers.cuda_standins import models
from helpers.cuda_standins.inspection import Report
from helpers.cuda_standins.models import Size
from helpers.cuda_standins.sessions import StandIns


@pytest.fixture(scope="module", params=models.SMALL)
def opened(
    request: pytest.FixtureRequest, opener: StandIns, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Mapping[str, Report]]:
    """A model, and what became of each of its graphs."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    jobs = models.small(request.param, folder)
    return request.param, dict(zip(jobs, opener.inspect(list(jobs.values()), folder), strict=True))


def test_every_node_runs_on_the_gpu(opened: tuple[str, Mapping[str, Report]]) -> None:
    _, reports = opened
    assert {"segment_00", "time_embedding", "text_encoder", "vae_decoder", "vae_encoder"} <= reports.keys()
    for name, report in reports.items():
        assert (report.error, report.host, report.copies) == (None, {}, 0), name


def test_no_graph_has_more_nodes_or_transposes_than_before(opened: tuple[str, Mapping[str, Report]]) -> None:
    model, reports = opened
    limits = models.read_table()[model]
    assert reports.keys() == limits.keys()
    found = {name: Size.of(report) for name, report in reports.items()}
    assert {name: size for name, size in found.items() if size.exceeds(limits[name])} == {}
