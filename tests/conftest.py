"""What several test files share: one export of each kind of engine directory per run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes run side by side: threads of each would wait for those of the others. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# For `helpers`: with importlib mode, pytest itself adds no folder.
sys.path.append(str(Path(__file__).parent))

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared engines go to a folder of this run; the user's own cache is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("EBCA_CACHE_DIR")
    os.environ["EBCA_CACHE_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EBCA_CACHE_DIR"]
    else:
        os.environ["EBCA_CACHE_DIR"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_trace_per_module() -> Iterator[None]:
    """Tracing is most of the time of an export; see `helpers.traces`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        # Collecting has imported it where more than one file exports.
        if "torch" in sys.modules:
            from helpers import traces

            traces.remember(monkeypatch)
        yield


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Committed results of the authors' algorithm on the tiny net."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole built-in model in float32. Shared: copy it before changing anything."""
    pytest.importorskip("torch")
    from ebca.export.api import export_checkpoint
    from ebca.export.checkpoint.tiny import build_tiny

    return export_checkpoint(build_tiny(), tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture(scope="session")
def tiny_unet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of the built-in model alone, in float32. Shared."""
    return _export_unet(tmp_path_factory.mktemp("engines") / "tiny-unet", "fp32")


@pytest.fixture(scope="session")
def tiny_engine_fp16_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of the built-in model alone, its weights stored as float16. Shared."""
    return _export_unet(tmp_path_factory.mktemp("engines") / "tiny-fp16", "fp16")


@pytest.fixture(scope="session")
def tiny_gpu_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole built-in model and its full UNet in graphs that compute in float16, with plans of TensorRT for RTX.
    Shared."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx_bindings")
    from ebca.export.api import export_checkpoint
    from ebca.export.checkpoint.tiny import build_tiny
    from ebca.export.plans.shapes import PlanOptions, fixed

    options = PlanOptions("tensorrt-rtx", (fixed("1x64x64"), fixed("1x64x128")), ("8.6", "8.9"))
    folder = tmp_path_factory.mktemp("engines") / "tiny-gpu"
    checkpoint = build_tiny()
    return export_checkpoint(checkpoint, folder, precision="fp16", compute="fp16", plans=options, with_full_unet=True)


@pytest.fixture(scope="session")
def tiny_inpainting_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole built-in model in its inpainting form (nine channels), in float32. Shared."""
    pytest.importorskip("torch")
    from ebca.export.api import export_checkpoint
    from ebca.export.checkpoint.tiny import build_tiny

    folder = tmp_path_factory.mktemp("engines") / "tiny-inpainting"
    return export_checkpoint(build_tiny(in_channels=9), folder)


def _export_unet(folder: Path, precision: str) -> Path:
    pytest.importorskip("torch")
    from ebca.export.api import export_unet
    from ebca.export.checkpoint.tiny import build_tiny

    return export_unet(build_tiny().unet, folder, precision=precision)
