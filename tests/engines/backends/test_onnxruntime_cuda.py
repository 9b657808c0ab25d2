"""ONNX Runtime's CUDA provider without a GPU or its package: options, errors, and who may use the shared arena."""

import gc
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ebca.engines.backends import onnxruntime_cuda as cuda
from ebca.engines.contract.manifest import Component
from ebca.errors import BackendError, DeviceMemoryError

COMPONENT = Component("g.onnx", {}, {})


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An ONNX Runtime that says it has the provider. `error` is raised by the next session; `options` and `provider`
    are what the last one was given."""
    seen: dict[str, Any] = {"error": "no such file"}

    def session(path: str, options: Any, providers: Any) -> None:
        seen["options"], seen["provider"] = options, providers[0][1]
        raise RuntimeError(seen["error"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(cuda, "_register_shared_arena", lambda index: None)
    monkeypatch.setattr(cuda, "_arena_users", {})
    return seen


def shares_arena(seen: dict[str, Any], backend: cuda.OnnxRuntimeCudaBackend) -> bool:
    with pytest.raises(BackendError):
        backend.open(Path("g.onnx"), COMPONENT, {})
    try:
        return bool(seen["options"].get_session_config_entry("session.use_env_allocators") == "1")
    except RuntimeError:
        return False


def test_one_stream_of_a_gpu_uses_the_shared_arena(provider: dict[str, Any]) -> None:
    first, second, other = (cuda.OnnxRuntimeCudaBackend(*at) for at in ((16, 0), (32, 0), (48, 1)))
    assert [shares_arena(provider, one) for one in (first, second, other)] == [True, False, True]
    del first
    gc.collect()
    assert shares_arena(provider, cuda.OnnxRuntimeCudaBackend(64, 0))


def test_options_of_the_provider_can_be_replaced_for_measuring(
    provider: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBCA_ORT_CUDA_OPTIONS", "cudnn_conv_algo_search=HEURISTIC, prefer_nhwc=0")
    target: Any = type("Target", (), {"stream": 16, "index": 0})
    with pytest.raises(BackendError):
        cuda.create(target).open(Path("g.onnx"), COMPONENT, {"batch": 2})
    assert provider["provider"]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert provider["provider"]["prefer_nhwc"] == "0" and provider["provider"]["user_compute_stream"] == "16"
    monkeypatch.setenv("EBCA_ORT_CUDA_OPTIONS", "HEURISTIC")
    with pytest.raises(BackendError, match="EBCA_ORT_CUDA_OPTIONS has 'HEURISTIC'; write name=value"):
        cuda.create(target)


@pytest.mark.parametrize(
    "text, kind",
    [
        (
            "bfc_arena.cc:359 void* AllocateRawInternal Available memory of 12 is smaller than requested bytes of 34",
            True,
        ),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("Failed to allocate memory for requested buffer of size 5898240", True),
        ("Load model from g.onnx failed: File doesn't exist", False),
    ],
)
def test_too_little_memory_is_told_apart(provider: dict[str, Any], text: str, kind: bool) -> None:
    provider["error"] = text
    with pytest.raises(DeviceMemoryError if kind else BackendError, match=r"open 'g\.onnx'") as caught:
        cuda.OnnxRuntimeCudaBackend(16).open(Path("g.onnx"), COMPONENT, {})
    assert text in caught.value.problem


def test_without_the_provider_it_says_what_to_install() -> None:
    if cuda.PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="built without CUDA; run `pip uninstall onnxruntime`"):
        cuda.OnnxRuntimeCudaBackend(16)
