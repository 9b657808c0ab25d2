"""The CPU backends behind their common interface, and the choice between them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ebca
from ebca.engines.backends import registry as backends
from ebca.engines.backends.protocol import BackendOptions, PreparingBackend
from ebca.engines.backends.registry import create
from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.contract.directory import open_directory
from ebca.errors import BackendError, ParameterError

ids = np.arange(77, dtype=np.int64)[None]


def _encode(engine: Path, name: str, folder: Path) -> np.ndarray:
    directory = open_directory(engine)
    component = directory.manifest.components["text_encoder"]
    backend = create(name, BackendOptions(threads=1))
    assert isinstance(backend, PreparingBackend)
    folder.mkdir()
    backend.prepare(directory.file(component.graph_for(name)), folder / "text_encoder.onnx")
    out = np.empty((1, 77, 32), np.float32)
    call = backend.open(folder / "text_encoder.onnx", component).bind({"input_ids": ids}, {"hidden_states": out})
    call()
    first = out.copy()
    out[...] = 0
    call()
    np.testing.assert_array_equal(out, first)
    return out


def test_backends_agree(tiny_engine_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    one, other = (_encode(tiny_engine_dir, name, tmp_path / name) for name in ("onnxruntime", "openvino"))
    # float32 on both; two layers of width 32 lose a few units in the last place.
    assert relative_l2(other, one) <= 2e-6


def test_the_host_process_can_open_its_own_sessions(tiny_engine_dir: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    _encode(tiny_engine_dir, "onnxruntime", tmp_path / "ours")
    session = ort.InferenceSession(str(tiny_engine_dir / "text_encoder.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input_ids": ids})[0].shape == (1, 77, 32)


def test_prepared_form_with_a_constant_of_odd_size_does_not_crash(tmp_path: Path) -> None:
    """Packed weights after a constant of 5929 bytes were mapped off their boundary and crashed the process."""
    script = f"""
import numpy as np, onnx, ebca
from onnx import helper as h, numpy_helper as nh
from pathlib import Path
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create
from ebca.engines.contract.manifest import Component
rng = np.random.default_rng(0)
f, b = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
odd = np.tril(np.ones((177, 177), bool))
weight = rng.standard_normal((256, 256), np.float32)
nodes = [h.make_node("MatMul", ["x", "w"], ["y"]), h.make_node("Where", ["odd", "y", "zero"], ["z"])]
graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", f, [177, 256])],
    [h.make_tensor_value_info("z", f, [177, 256])],
    [nh.from_array(np.concatenate([odd, odd[:, :79]], 1), "odd"), nh.from_array(weight, "w"),
     nh.from_array(np.zeros(1, np.float32), "zero")])
path = Path({str(tmp_path)!r})
onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10), path / "g.onnx")
backend = create("onnxruntime", BackendOptions(threads=1))
(path / "p").mkdir()
backend.prepare(path / "g.onnx", path / "p" / "g.onnx")
x = rng.standard_normal((177, 256)).astype(np.float32); z = np.empty((177, 256), np.float32)
backend.open(path / "p" / "g.onnx", Component("g.onnx", {{}}, {{}})).bind({{"x": x}}, {{"z": z}})()
mask = np.concatenate([odd, odd[:, :79]], 1)
np.testing.assert_allclose(z, np.where(mask, x @ weight, 0), rtol=1e-4, atol=1e-4)
"""
    pytest.importorskip("onnx")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("timestep", [1, 500, 981])
def test_bfloat16_keeps_the_time_embedding(tiny_engine_dir: Path, timestep: int) -> None:
    """The error once grew with the timestep, up to 16 % of the noise at 981."""
    pytest.importorskip("openvino")
    try:
        half = ebca.Denoiser(tiny_engine_dir, backend="openvino", precision="bf16")
    except BackendError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    sample, contexts = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 16, 16), (2, 1, 77, 32)))
    control = ebca.EnergyControl(gamma_attn=0.01, gamma_norm=0.02)
    expected = ebca.Denoiser(tiny_engine_dir, backend="onnxruntime")(sample, timestep, contexts, control).noise
    noise = half(sample, timestep, contexts, control).noise
    # bfloat16 has 8 bits; PyTorch's own autocast loses 1.6e-2 on such a net, this engine 1.5e-2.
    assert relative_l2(noise, expected) <= 3e-2


def test_the_default_is_an_installed_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create("onnxruntime", BackendOptions()).name == "onnxruntime"
    monkeypatch.setattr(backends, "find_spec", lambda name: object() if name == "onnxruntime" else None)
    assert create(None, BackendOptions()).name == "onnxruntime"
    with pytest.raises(BackendError, match=r"run `pip install \"ebca\[openvino\]\"`"):
        create("openvino", BackendOptions())


def test_the_default_for_bf16_is_openvino() -> None:
    pytest.importorskip("openvino")
    assert create(None, BackendOptions()).name == "onnxruntime"
    try:
        chosen = create(None, BackendOptions(precision="bf16")).name
    except BackendError as error:
        # onnxruntime would be named in the message.
        assert "needs a processor with" in str(error)
    else:
        assert chosen == "openvino"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ParameterError, match="backend 'cuda' is unknown"):
        create("cuda", BackendOptions())
    with pytest.raises(ParameterError, match="precision 'int4' is unknown"):
        create(None, BackendOptions(precision="int4"))
    with pytest.raises(ParameterError, match="threads is 0"):
        create(None, BackendOptions(threads=0))
    with pytest.raises(BackendError, match="not available with onnxruntime"):
        create("onnxruntime", BackendOptions(precision="bf16"))


@pytest.mark.parametrize("version", ["2025.4.1-20426", "2026.2.1-21919-ede283a88e3"])
def test_an_openvino_with_wrong_results_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2026.2 opens the graphs and silently produces wrong results: 0.61 relative L2 on `shapes`."""
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "__version__", version)
    with pytest.raises(BackendError, match=rf"openvino {version} is too old.*2026\.3 or newer"):
        backends.create("openvino", BackendOptions())


@pytest.mark.parametrize("error", [ImportError("libtbb.so.12: cannot open"), RuntimeError("no home\nmore")])
def test_a_library_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(backends, "import_module", fail)
    with pytest.raises(BackendError, match=r"'onnxruntime' cannot be imported: (libtbb|no home)[^\n]*reinstall"):
        create("onnxruntime", BackendOptions())
