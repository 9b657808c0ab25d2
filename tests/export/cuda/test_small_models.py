"""`tiny`, `tiny-xl` and `shapes` in ONNX Runtime's CUDA provider: every node of their graphs on the GPU, no more nodes
than there were, and bindings that fit."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers.cuda_standins import models
from helpers.cuda_standins.inspection import Report
from helpers.cuda_standins.sessions import ROOT, StandIns

from ebca.engines.contract.directory import open_directory


@pytest.fixture(scope="module")
def directories(opener: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Engine directories by model. Skips before the export where nothing can be opened."""
    return models.small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=models.SMALL)
def directory(request: pytest.FixtureRequest, directories: Mapping[str, Path]) -> Path:
    """The engine directory of a model, which it is named after."""
    return directories[request.param]


@pytest.fixture(scope="module")
def reports(directory: Path, opener: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """What became of each of its graphs."""
    jobs = models.small_jobs(directory)
    return dict(zip(jobs, opener.inspect(list(jobs.values()), tmp_path_factory.mktemp("reports")), strict=True))


def test_every_node_runs_on_the_gpu(reports: Mapping[str, Report]) -> None:
    assert {"segment_00", "time_embedding", "text_encoder", "vae_decoder", "vae_encoder"} <= reports.keys()
    for name, report in reports.items():
        assert (report.error, report.host, report.copies) == (None, {}, 0), name


def test_no_graph_has_more_nodes_or_transposes_than_before(directory: Path, reports: Mapping[str, Report]) -> None:
    assert models.worse(directory.name, reports) == {}


def test_every_binding_of_the_runtime_fits_its_session(directory: Path, opener: StandIns) -> None:
    """From text, with a context update and without guidance, and from an image."""
    image = str(ROOT / "examples" / "shapes" / "vae.png")
    requests = [
        {"prompt": "a red circle", "steps": 3, "gamma_attn": 0.01, "gamma_norm": 0.02},
        {"prompt": "a red circle", "steps": 2, "guidance_scale": 1.0, "clip_skip": 1},
        {"prompt": "a red circle", "steps": 3, "image": image, "strength": 0.7},
    ]
    output = opener.run("generate", directory, json.dumps(requests))
    found = json.loads(output.splitlines()[-1])
    # Nothing was predicted or decoded, so every pixel is the same.
    manifest = open_directory(directory).manifest
    assert manifest.vae is not None
    side = manifest.unet.sample_size * manifest.vae.downscale
    assert found["images"] == [[[side, side, 1]]] * len(requests)
    assert found["runs"].keys() == models.small_jobs(directory).keys()
