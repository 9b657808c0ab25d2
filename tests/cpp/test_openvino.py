"""The library on OpenVINO against the Python session on the same OpenVINO: the same bits, at both precisions."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import building, derived, manifests

import ebca
from ebca.engines.backends.protocol import BackendOptions
from ebca.engines.backends.registry import create
from ebca.errors import BackendError, ParameterError
from ebca.runtime import native

SRC = Path(__file__).parents[2] / "runtime" / "cpp" / "src"
BACKENDS = SRC / "backends"
PROMPT = {"shapes": "a red circle", "float16": "a red circle", "tiny": "a cat"}
PLAIN: dict[str, Any] = {}
EDITED: dict[str, Any] = {
    "gamma_attn": 0.01,
    "gamma_norm": 0.02,
    "edits": [ebca.Edit("a dog", alpha=0.5, gamma_norm=0.001)],
}
MASKED: dict[str, Any] = {
    "image": np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
    "mask": np.kron([[0, 255], [0, 0]], np.ones((32, 32))).astype(np.uint8),
    "repaint": ebca.RePaint(jump_length=2, jump_count=1),
    "gamma_attn": 0.01,
}
APART: dict[str, Any] = {"subjects": ["red", "circle"], "gamma_attn": 0.01}
CALLS = {
    ("shapes", "fp32"): [EDITED, APART],
    ("shapes", "bf16"): [PLAIN, EDITED],
    ("float16", "fp32"): [EDITED],
    ("tiny", "fp32"): [PLAIN, EDITED, MASKED],
}


@pytest.fixture(scope="module")
def wheel() -> Path:
    openvino = pytest.importorskip("openvino")
    return Path(openvino.__file__).parent


@pytest.fixture(scope="module")
def openvino_file(wheel: Path) -> Path:
    """The library in Python's package: the same build, so that results must be the same."""
    found = sorted((wheel / "libs").glob("libopenvino_c.so*"))
    if not found:
        pytest.skip("this openvino package has no libopenvino_c.so")
    return found[0]


@pytest.fixture(params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest, wheel: Path) -> str:
    try:
        create("openvino", BackendOptions(precision=request.param))
    except BackendError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def float16_dir(shapes_dir: Path, tmp_path: Path) -> Path:
    """The bundled engine with float16 tensors between its graphs."""
    return derived.with_float16_between(shapes_dir, tmp_path / "engine")


@pytest.mark.parametrize(("model", "precision"), CALLS, indirect=["precision"])
def test_images_equal_python_bit_by_bit(
    library: native.Library, openvino_file: Path, precision: str, model: str, request: pytest.FixtureRequest
) -> None:
    fixtures = {"shapes": "shapes_dir", "float16": "float16_dir", "tiny": "tiny_engine_dir"}
    path = request.getfixturevalue(fixtures[model])
    engine = library.open(path, backend="openvino", precision=precision, openvino=openvino_file)
    session = engine.session(64, 64)
    with ebca.load(path, backend="openvino", precision=precision) as opened, opened.session(64, 64) as python:
        for given in CALLS[model, precision]:
            call: dict[str, Any] = {"seed": 1, "steps": 2, **given}
            made = session.generate(PROMPT[model], **call)
            expected = python.generate(PROMPT[model], output="np", **call)
            assert np.array_equal(made.latents, expected.latents)
            assert np.array_equal(made.pixels, np.rint(expected.images * 255).astype(np.uint8))
    session.close()
    engine.close()


def test_each_precision_computes_at_that_precision(
    library: native.Library, shapes: native.Engine, shapes_dir: Path, openvino_file: Path, precision: str
) -> None:
    """One step beside ONNX Runtime's in float32."""
    engine = library.open(shapes_dir, backend="openvino", precision=precision, openvino=openvino_file)
    made, expected = (
        one.session(64, 64).generate(PROMPT["shapes"], steps=1, seed=1, gamma_norm=0.01, output="latents").latents
        for one in (engine, shapes)
    )
    difference = np.linalg.norm(made - expected) / np.linalg.norm(expected)
    assert difference < 1e-5 if precision == "fp32" else 1e-4 < difference < 0.1
    engine.close()


def test_four_threads_with_a_session_each(library: native.Library, shapes_dir: Path, openvino_file: Path) -> None:
    engine = library.open(shapes_dir, backend="openvino", openvino=openvino_file)

    def work(_: int = 0) -> list[np.ndarray]:
        session = engine.session(64, 64)
        made = [
            session.generate(PROMPT["shapes"], seed=1, steps=2, gamma_norm=gamma, output="latents").latents
            for gamma in (0.0, 0.01, 0.01)
        ]
        session.close()
        return made

    with ThreadPoolExecutor(4) as pool:
        all_made = list(pool.map(work, range(4)))
    expected = work()
    assert not np.array_equal(expected[0], expected[1])
    assert all(np.array_equal(made, expected) for made in all_made)
    engine.close()


def test_engine_info(
    library: native.Library, shapes_dir: Path, openvino_file: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    monkeypatch.setenv("EBCA_OPENVINO_LIB", str(openvino_file))
    engine = library.open(shapes_dir, backend="openvino", threads=1)
    info = engine.info()
    assert (info.backend.decode(), info.backend_version.decode(), info.threads) == ("openvino", openvino.__version__, 1)
    engine.close()
    engine = library.open(shapes_dir, precision="fp32")
    assert engine.info().backend == b"onnxruntime"
    engine.close()


def test_bfloat16_needs_openvino(library: native.Library, shapes_dir: Path, openvino_file: Path) -> None:
    """A processor without it is refused; it never runs at another precision."""
    with pytest.raises(
        BackendError, match="precision 'bf16' is not available with onnxruntime on CPU; use backend openv"
    ):
        library.open(shapes_dir, backend="onnxruntime", precision="bf16")
    try:
        create("openvino", BackendOptions(precision="bf16"))
    except BackendError as error:
        with pytest.raises(BackendError, match=re.escape(str(error))):
            library.open(shapes_dir, precision="bf16", openvino=openvino_file)
    else:
        engine = library.open(shapes_dir, precision="bf16", openvino=openvino_file)
        assert engine.info().backend == b"openvino"
        engine.close()


def test_mapped_weights_leave_memory_after_packing(
    library: native.Library, tiny_engine_dir: Path, openvino_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(tiny_engine_dir, copy)
    engine = library.open(copy, backend="openvino", openvino=openvino_file)
    session = engine.session(64, 64)
    session.generate(PROMPT["tiny"], steps=1, output="latents")
    resident = _resident(copy / "unet")
    assert len(resident) > 5 and set(resident.values()) == {0}
    session.close()
    engine.close()
    assert _resident(copy) == {}


def _resident(folder: Path) -> dict[str, int]:
    """Resident bytes of each mapped file of a folder."""
    found: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text(errors="surrogateescape").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if line.count("/") else ""
        elif line.startswith("Rss:") and name.startswith(f"{folder.resolve()}/"):
            found[name] = found.get(name, 0) + int(line.split()[1]) * 1024
    return found


def test_python_and_c_share_a_cache(
    library: native.Library,
    shapes_dir: Path,
    openvino_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python keeps converted graphs there, the library only what it has verified."""
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path))
    for expected in (True, False):
        said: list[str] = []
        library.open(
            shapes_dir, backend="openvino", openvino=openvino_file, on_prepare=lambda *one, to=said: to.append(one[2])
        ).close()
        assert bool(said) == expected
        ebca.load("shapes", backend="openvino").close()
    converted = [bool(list(folder.glob("*.xml"))) for folder in tmp_path.iterdir()]
    assert sorted(converted) == [False, True]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"backend": "tensorflow"},
            ParameterError,
            "backend 'tensorflow' is unknown; choose one of onnxruntime, openvino",
        ),
        ({"precision": "int8"}, ParameterError, "precision 'int8' is unknown; choose one of fp32, bf16"),
        ({"backend": "openvino", "threads": -1}, ParameterError, "threads is -1; give 1 "),
        ({"backend": "openvino", "openvino": "/nowhere/libopenvino_c.so"}, BackendError, "OpenVINO cannot be loaded"),
        ({"precision": "bf16", "openvino": "/nowhere/libopenvino_c.so"}, BackendError, "in EBCA_OPENVINO_LIB$"),
        ({"backend": "openvino", "openvino": "libm.so.6"}, BackendError, "has no ov_get_openvino_version"),
    ],
)
def test_errors_are_one_line(
    library: native.Library, shapes_dir: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        library.open(shapes_dir, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("version", ["2026.2.1-21919-ede283a88e3", "2025.4.1", "", "none"])
def test_an_openvino_that_is_too_old(library: native.Library, shapes_dir: Path, tmp_path: Path, version: str) -> None:
    """2026.2 opened these graphs and made other images; older ones do not open them."""
    names = set(re.findall(r'"(ov_\w+)"', (BACKENDS / "openvino_library.cpp").read_text())) - {
        "ov_get_openvino_version"
    }
    assert len(names) > 15
    stub = tmp_path / "stub.c"
    stub.write_text(
        "struct version { const char *number, *text; };\n"
        f'int ov_get_openvino_version(struct version* v) {{ v->number = "{version}"; return 0; }}\n'
        + "".join(f"void {name}(void) {{}}\n" for name in sorted(names))
    )
    building.run("cc", "-shared", "-fPIC", stub, "-o", tmp_path / "libopenvino_c.so")
    with pytest.raises(BackendError, match=f"OpenVINO '{version}' is too old; install OpenVINO 2026.3 or newer"):
        library.open(shapes_dir, backend="openvino", openvino=tmp_path / "libopenvino_c.so")


def test_a_file_that_is_not_a_graph_is_named(
    library: native.Library, shapes_dir: Path, openvino_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(shapes_dir, copy)
    (copy / "text_encoder.onnx").write_bytes(b"no graph")
    record = {"size": 8, "sha256": sha256(b"no graph").hexdigest()}
    manifests.edit(copy, lambda data: data["files"].update({"text_encoder.onnx": record}))
    engine = library.open(copy, backend="openvino", openvino=openvino_file)
    session = engine.session(64, 64)
    with pytest.raises(BackendError, match=r"^openvino 20\S+ cannot open '.*text_encoder.onnx': [^\n]+$"):
        session.generate(PROMPT["shapes"], steps=1)
    session.close()
    engine.close()


DECLARATIONS = r"""
#include <openvino/c/openvino.h>
#include <type_traits>
#include "backends/openvino_c.hpp"

using namespace ebca::internal::openvino_c;

static_assert(kFloat16 == F16 && kFloat32 == F32 && kInt64 == I64 && OK == 0);
static_assert(sizeof(Shape) == sizeof(ov_shape_t) && offsetof(Shape, dims) == offsetof(ov_shape_t, dims));
static_assert(sizeof(Version) == sizeof(ov_version_t));
static_assert(offsetof(Version, build_number) == offsetof(ov_version_t, buildNumber));

// Enumerations are passed as the integers they are made of; structs of ours stand for theirs.
template <typename T, bool = std::is_enum<T>::value> struct plain { using type = T; };
template <typename T> struct plain<T, true> { using type = std::underlying_type_t<T>; };
template <> struct plain<ov_shape_t, false> { using type = Shape; };
template <> struct plain<ov_version_t*, false> { using type = Version*; };
template <typename T> using Plain = typename plain<std::remove_cv_t<T>>::type;

template <typename> struct Signature;
template <typename R, typename... A> struct Signature<R (*)(A...)> { using type = Plain<R> (*)(Plain<A>...); };
template <typename R, typename... A> struct Signature<R (*)(A..., ...)> {
    using type = Plain<R> (*)(Plain<A>..., ...);
};
template <typename Ours, typename Theirs>
constexpr bool same = std::is_same<typename Signature<Ours>::type, typename Signature<Theirs>::type>::value;

"""


def test_the_declarations_equal_openvino_s(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None or not (wheel / "include" / "openvino" / "c" / "openvino.h").is_file():
        pytest.skip("there is no C++ compiler, or the openvino package has no headers")
    ours = re.findall(r"\(\*(\w+)\)\(", (BACKENDS / "openvino_c.hpp").read_text())
    looked_up = re.findall(r'find\(ov\.(\w+), handle, "(\w+)"\);', (BACKENDS / "openvino_library.cpp").read_text())
    assert [name for name, _ in looked_up] == ours and len(ours) > 15
    assert all(symbol == f"ov_{name}" for name, symbol in looked_up)
    source = tmp_path / "declarations.cpp"
    checks = [f'static_assert(same<decltype(Functions::{name}), decltype(&ov_{name})>, "{name}");' for name in ours]
    source.write_text(DECLARATIONS + "\n".join(checks) + "\n")
    include = [f"-I{wheel / 'include'}", f"-I{SRC}"]
    building.run("c++", "-std=c++17", "-fsyntax-only", *include, source)
    # The comparison detects a difference.
    source.write_text(source.read_text().replace("decltype(&ov_core_free)", "decltype(&ov_core_create)"))
    with pytest.raises(AssertionError, match="core_free"):
        building.run("c++", "-std=c++17", "-fsyntax-only", *include, source)
