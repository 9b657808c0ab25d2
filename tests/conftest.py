"""What several test files share: one export of each kind of engine directory per run."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes run side by side: threads of each would wait for those of the others. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# For `helpers`: with importlib mode, pytest itself adds no folder.
sys.path.append(str(Path(__file__).parent))

GOLDEN = Path(__file__).parent / "golden"
FEWER_STEPS = (1, 2, 3, 4, 5, 10, 20)
FEW_STEPS = (*range(1, 13), 20, 40, 50, 70, 80, 100)


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


@pytest.fixture(scope="session", autouse=True)
def _few_step_counts() -> Iterator[None]:
    """Exports of tests have tables for these numbers of steps: running diffusers 200 times takes 15 seconds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("ebca.export.options.DEFAULT_STEPS", FEW_STEPS)
        monkeypatch.setattr("ebca.export.options.COMMON_STEPS", FEWER_STEPS)
        yield


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Committed results of the authors' algorithm on the tiny net."""
    return GOLDEN


def exported(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """An engine directory that all test processes of this run share: the first one that needs it exports it."""
    pytest.importorskip("torch")
    from helpers import building

    folder = building.shared_folder(tmp_path_factory) / "engines"
    folder.mkdir(exist_ok=True)
    with building.building(folder / name):
        # An engine directory appears under its name when it is complete.
        return folder / name if (folder / name).is_dir() else make(folder / name)


@pytest.fixture(scope="session")
def shapes_dir() -> Path:
    """The bundled model."""
    from ebca.engines.contract.directory import BUNDLED

    return BUNDLED / "shapes"


@pytest.fixture(scope="session")
def tiny_engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete built-in model in float32. Shared: copy it before changing anything."""

    def make(folder: Path) -> Path:
        from ebca.export.api import export_checkpoint
        from ebca.export.checkpoint.tiny import build_tiny

        return export_checkpoint(build_tiny(), folder)

    return exported(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def tiny_unet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of the built-in model alone, in float32. Shared."""
    return exported(tmp_path_factory, "tiny-unet", lambda folder: _export_unet(folder, "fp32"))


@pytest.fixture(scope="session")
def tiny_engine_fp16_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of the built-in model alone, its weights stored as float16. Shared."""
    return exported(tmp_path_factory, "tiny-fp16", lambda folder: _export_unet(folder, "fp16"))


@pytest.fixture(scope="session")
def tiny_gpu_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete built-in model and its full UNet in graphs that compute in float16, with plans of TensorRT for RTX.
    Shared."""
    pytest.importorskip("tensorrt_rtx_bindings")

    def make(folder: Path) -> Path:
        from ebca.export.api import export_checkpoint
        from ebca.export.checkpoint.tiny import build_tiny
        from ebca.export.plans.shapes import PlanOptions, fixed

        plans = PlanOptions("tensorrt-rtx", (fixed("1x64x64"), fixed("1x64x128")), ("8.6", "8.9"))
        options = {"precision": "fp16", "compute": "fp16", "plans": plans, "with_full_unet": True}
        return export_checkpoint(build_tiny(), folder, **options)  # type: ignore[arg-type]

    return exported(tmp_path_factory, "tiny-gpu", make)


@pytest.fixture(scope="session")
def tiny_inpainting_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete built-in model in its inpainting form (nine channels), in float32. Shared."""

    def make(folder: Path) -> Path:
        from ebca.export.api import export_checkpoint
        from ebca.export.checkpoint.tiny import build_tiny

        return export_checkpoint(build_tiny(in_channels=9), folder)

    return exported(tmp_path_factory, "tiny-inpainting", make)


@pytest.fixture(scope="session")
def tiny_xl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with the structure of Stable Diffusion XL, complete, in float32. Shared."""
    return exported(tmp_path_factory, "tiny-xl", lambda folder: _export_xl(folder, in_channels=4))


@pytest.fixture(scope="session")
def tiny_xl_inpainting_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in its inpainting form (nine channels). Shared."""
    return exported(tmp_path_factory, "tiny-xl-inpainting", lambda folder: _export_xl(folder, in_channels=9))


@pytest.fixture(scope="session")
def tiny_controlled_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete built-in model with two ControlNets, "canny" and "depth", in float32. Shared."""

    def make(folder: Path) -> Path:
        from helpers.controlnets import controlled

        from ebca.export.api import export_checkpoint

        return export_checkpoint(controlled(), folder)

    return exported(tmp_path_factory, "tiny-controlled", make)


@pytest.fixture(scope="session")
def tiny_instruction_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete built-in model in the form of InstructPix2Pix (eight channels), in float32. Shared."""

    def make(folder: Path) -> Path:
        from ebca.export.api import export_checkpoint
        from ebca.export.checkpoint.tiny import build_tiny

        return export_checkpoint(build_tiny(in_channels=8), folder)

    return exported(tmp_path_factory, "tiny-instruction", make)


def _export_xl(folder: Path, *, in_channels: int) -> Path:
    from ebca.export.api import export_checkpoint
    from ebca.export.checkpoint.tiny_xl import TINY_XL

    return export_checkpoint(TINY_XL.build(in_channels=in_channels), folder)


def _export_unet(folder: Path, precision: str) -> Path:
    from ebca.export.api import export_unet
    from ebca.export.checkpoint.tiny import build_tiny

    return export_unet(build_tiny().unet, folder, precision=precision)
