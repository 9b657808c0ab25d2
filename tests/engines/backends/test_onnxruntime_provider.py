"""Whether ONNX Runtime's CUDA provider can start, with stand-ins for ONNX Runtime and for NVIDIA's libraries."""

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ebca.engines.backends import onnxruntime_provider as provider
from ebca.errors import BackendError

LIBRARIES = ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"]


def onnxruntime(**more: Any) -> Any:
    providers = lambda: [provider.PROVIDER, "CPUExecutionProvider"]  # noqa: E731
    return SimpleNamespace(__version__="1.31.1", cuda_version="13.0", get_available_providers=providers, **more)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Libraries that do not load; all others do."""
    names: set[str] = set()

    def load(name: str) -> object:
        if name in names:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    return names


def test_a_build_without_cuda() -> None:
    library = SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError) as error:
        provider.check_provider("13.0", library)
    expected = 'run `pip uninstall onnxruntime` and `pip install "onnxruntime-gpu[cuda,cudnn]"`'
    assert str(error.value) == f"onnxruntime 1.31.1 is built without CUDA; {expected}"


def test_a_driver_that_is_too_old(missing: set[str]) -> None:
    line = r"up to 12\.8, onnxruntime 1\.31\.1 needs CUDA 13; update the driver to version 580 or newer"
    with pytest.raises(BackendError, match=line):
        provider.check_provider("12.8", onnxruntime())


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries have other names, and are not looked for")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named(missing: set[str], name: str) -> None:
    missing.add(name)
    with pytest.raises(BackendError) as error:
        provider.check_provider("13.0", onnxruntime())
    assert error.value.problem == f"onnxruntime 1.31.1 needs {name} on the GPU"
    assert 'run `pip install "onnxruntime-gpu[cuda,cudnn]"`' in error.value.remedy


def test_with_everything_there_the_versions_are_returned(missing: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    loaded: list[str] = []

    def preload() -> None:
        loaded.append("all")
        print("Failed to load libcufft.so.12")

    assert provider.check_provider("13.2", onnxruntime(preload_dlls=preload)) == "1.31.1, CUDA 13.0"
    assert loaded == ["all"] and capsys.readouterr().out == ""
