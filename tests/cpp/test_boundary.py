"""The C ABI: statuses with texts for every wrong call, cancelling, threads, exported names."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import building
from helpers.tiny import changed_copy

import ebca
from ebca.bench.reliability.mutations import restamped
from ebca.errors import (
    BackendError,
    CancelledError,
    EngineError,
    NumericalError,
    OutOfMemoryError,
    ParameterError,
)
from ebca.runtime import native
from ebca.runtime.native import structures

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "runtime" / "cpp" / "include"
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def session(shapes: native.Engine) -> Iterator[native.Session]:
    session = shapes.session()
    yield session
    session.close()


@pytest.fixture(scope="module")
def expected(session: native.Session) -> np.ndarray:
    return session.generate(PROMPT, steps=3, seed=1, output="latents").latents


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_engine_info(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    info, manifest = shapes.info(), python_shapes.manifest
    assert (info.model, info.kind, info.backend) == (b"shapes", b"text-to-image", b"onnxruntime")
    assert info.tasks == 1 + 2 + 4 + 8 + 16
    assert info.height == info.width == 64 and info.latent_channels == 4
    assert info.max_tokens == python_shapes.tokenizer.max_length
    assert info.guidance_scale == manifest.guidance_scale
    assert info.scheduler.decode() == manifest.schedulers["default"]
    assert info.schedulers.decode().split(",") == sorted(set(manifest.schedulers["tables"]) - {"ddim_inverse"})
    assert shapes.library.lib.ebca_version().decode() == ebca.__version__


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "give either texts or embeds"),
        ({"prompt": ["a", "b"]}, "2 texts for a batch of 1"),
        ({"prompt": b"\xff".decode("latin1"), "steps": 0}, "steps is 0"),
        ({"steps": 10**6}, "steps is 1000000, and pndm has 1000 timesteps to step through; give 1 to 1000"),
        ({"steps": 201}, "pndm with 201 steps is not in this engine .the nearest stored count is 200"),
        ({"steps": -3}, "steps is -3"),
        ({"scheduler": "dpm"}, "scheduler 'dpm' is not in this engine; available: ddim"),
        ({"scheduler": "ddim_inverse"}, "is not in this engine"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"gamma_attn": [0.1, 0.2]}, "gamma_attn has 2 values, but pndm with 3 steps makes 4"),
        ({"gamma_norm": 1e300}, "gamma_norm: value 1e\\+300 at evaluation 0"),
        ({"norm_factor": float("nan")}, "norm_factor is nan"),
        ({"token_weights": {"square": 2.0}}, "the word 'square' is not in the prompt"),
        ({"token_weights": {99: 2.0}}, "position 99"),
        ({"token_weights": {0: float("nan")}}, "the factor of '0'"),
        ({"edits": [ebca.Edit("b", direction=2)]}, "direction 2"),
        ({"edits": [ebca.Edit("b", alpha=-1.0)]}, r"alpha of edits\[0\] is negative"),
        ({"edits": [ebca.Edit("b", direction=0, alpha=1.0)]}, "the alphas cancel at evaluation 0: 1 - 1"),
        ({"edits": [ebca.Edit()]}, r"edits\[0\].prompt has both texts and embeddings, or neither; give either"),
        ({"prompt": None, "prompt_embeds": zeros(1, 5, 7)}, "prompt.embeds has shape \\[1, 5, 7\\]"),
        ({"prompt": None, "prompt_embeds": zeros(1, 5, 128)}, "negative_prompt.embeds has shape"),
        ({"prompt": None, "prompt_embeds": zeros(1, 5, 128) + np.nan}, "not finite"),
        ({"latents": zeros(1, 4, 8, 8)}, "latents have shape \\[1, 4, 8, 8\\], this session needs \\[1, 4, 16, 16\\]"),
        ({"latents": zeros(1, 4, 16, 16) + np.inf}, "latents have values that are not finite"),
        ({"seed": [1, 2]}, "seeds has 2 values for a batch of 1"),
        ({"strength": 0.5}, "strength was given without images"),
        ({"mask": np.full((64, 64), 255, np.uint8)}, "masks were given without images"),
        ({"repaint": ebca.RePaint()}, "repaint was given without masks"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "strength": 0.0}, "strength is 0"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "strength": 0.1}, "leaves no step to run"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "scheduler": "pndm", "strength": 0.5}, "looks back over several"),
        ({"image": np.zeros((64, 64, 2), np.uint8)}, "64 x 64 pixels of 2 channels"),
        ({"image": [np.zeros((64, 64, 3), np.uint8)] * 2}, "2 images were given for a batch of 1"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "mask": np.zeros((64, 64), np.uint8)}, "the mask is empty"),
    ],
)
def test_a_wrong_parameter_is_named(session: native.Session, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        session.generate(**{"prompt": PROMPT, "steps": 3, **given})
    assert session.last_error() == session.library.last_error() != ""


def test_python_has_the_same_error_texts(session: native.Session, python_shapes: ebca.Engine) -> None:
    with python_shapes.session() as python:
        for given in (
            {"gamma_attn": [0.1, 0.2]},
            {"edits": [ebca.Edit("b", direction=0, alpha=1.0)]},
            {"token_weights": {"square": 2.0}},
            {"latents": zeros(1, 4, 8, 8)},
            {"steps": 0},
        ):
            call: dict[str, Any] = {"steps": 3, **given}
            with pytest.raises(ParameterError) as theirs:
                python.generate(PROMPT, **call)
            with pytest.raises(ParameterError) as mine:
                session.generate(PROMPT, **call)
            assert str(mine.value).split("; ")[0] == str(theirs.value).split("; ")[0]


def test_defaults_and_schedulers_left_out_come_from_the_manifest(
    library: native.Library, shapes_dir: Path, tmp_path: Path
) -> None:
    def change(data: dict[str, Any]) -> None:
        section = data["schedulers"]
        del section["tables"]["unipc"]
        section |= {"default": "dpmpp_2m", "image_to_image": "euler", "left_out": {"unipc": "it is not finite"}}

    folder, image = changed_copy(shapes_dir, tmp_path / "engine", change), np.zeros((128, 128, 3), np.uint8)
    given: dict[str, Any] = {"prompt": PROMPT, "steps": 2, "seed": 1, "output": "latents"}
    with (
        library.open(folder) as engine,
        engine.session() as mine,
        ebca.load(folder, "cpu") as other,
        other.session() as theirs,
    ):
        for more, scheduler in (
            ({}, "dpmpp_2m"),
            ({"image": image, "strength": 0.5}, "euler"),
            ({"image": image, "strength": 1.0}, "dpmpp_2m"),
        ):
            made, same = mine.generate(**given, **more), theirs.generate(**given, **more)
            assert made.scheduler == same.parameters["scheduler"] == scheduler
            assert np.array_equal(made.latents, same.latents)
        for session in (mine, theirs):
            with pytest.raises(ParameterError, match="'UniPC' was left out of this engine: it is not finite; avail"):
                session.generate(**given, scheduler="UniPC")


def test_a_prompt_that_is_not_utf8_is_refused(session: native.Session) -> None:
    params = session.library.init("generate_params")
    text = (ctypes.c_char_p * 1)(b"a \xff\xfe circle")
    params.prompt = structures.Prompt(text, 1)
    assert session.library.lib.ebca_session_generate(session.handle, byref(params), byref(c_void_p())) == 1
    assert "UTF-8" in session.last_error()


def test_a_result_that_is_not_finite_names_its_segment(session: native.Session, expected: np.ndarray) -> None:
    with pytest.raises(NumericalError, match=r"is not finite, first in .*segment_"):
        session.generate(PROMPT, steps=3, seed=1, gamma_norm=1e30)
    with pytest.raises(NumericalError, match="lower guidance_scale"):
        session.generate(PROMPT, steps=3, seed=1, guidance_scale=1e39)
    assert np.array_equal(session.generate(PROMPT, steps=3, seed=1, output="latents").latents, expected)


def test_null_pointers_and_wrong_sizes_are_statuses(library: native.Library, shapes: native.Engine) -> None:
    lib, out = library.lib, c_void_p()
    for name in structures.PARAMS:
        getattr(lib, f"ebca_{name}_init")(None, 64)
        # As with an older and a newer header: bytes beyond the caller's struct are not written.
        size = ctypes.sizeof(structures.PARAMS[name])
        for given in (0, 8, size, size + 16):
            buffer = ctypes.create_string_buffer(b"\xaa" * (size + 32), size + 32)
            getattr(lib, f"ebca_{name}_init")(buffer, given)
            assert buffer.raw[given:] == b"\xaa" * (size + 32 - given)
            assert given == 0 or int.from_bytes(buffer.raw[:8], "little") == given
    assert lib.ebca_engine_open(None, byref(out)) == 1 and "NULL" in library.last_error()
    params = library.init("engine_params")
    assert lib.ebca_engine_open(byref(params), None) == 1
    assert lib.ebca_engine_open(byref(params), byref(out)) == 1 and "path is missing" in library.last_error()
    assert out.value is None
    assert lib.ebca_session_create(None, None, byref(out)) == 1 and "the engine is NULL" in library.last_error()
    assert lib.ebca_session_create(shapes.handle, None, None) == 1
    assert b"the pointer that receives the session is NULL" in lib.ebca_engine_last_error(shapes.handle)
    assert lib.ebca_session_generate(None, None, byref(out)) == 1 and "the session is NULL" in library.last_error()
    assert lib.ebca_session_cancel(None) == 1
    assert lib.ebca_engine_get_info(shapes.handle, None) == 1
    assert lib.ebca_session_create(shapes.handle, None, byref(out)) == 0
    session = native.Session(library, out, [])
    assert lib.ebca_session_generate(session.handle, None, byref(c_void_p())) == 1
    assert lib.ebca_session_generate(session.handle, byref(library.init("generate_params")), None) == 1
    for size in (
        0,
        8,
        ctypes.sizeof(structures.GenerateParams) - 8,
        ctypes.sizeof(structures.GenerateParams) + 8,
        2**63,
    ):
        wrong = library.init("generate_params")
        wrong.struct_size = size
        assert lib.ebca_session_generate(session.handle, byref(wrong), byref(c_void_p())) == 1
        assert f"struct_size {size}" in library.last_error()
    announced = library.init("generate_params")
    announced.seed_count = 3
    assert lib.ebca_session_generate(session.handle, byref(announced), byref(c_void_p())) == 1
    assert "seeds is NULL, but 3 are announced" in library.last_error()
    unknown = library.init("generate_params")
    unknown.gamma_attn.kind = 77
    assert lib.ebca_session_generate(session.handle, byref(unknown), byref(c_void_p())) == 1
    session.close()
    for name in ("engine", "session", "result"):
        getattr(lib, f"ebca_{name}_free")(None)


def test_structs_have_the_sizes_of_the_header(library: native.Library) -> None:
    for name, params in structures.PARAMS.items():
        assert library.init(name).struct_size == ctypes.sizeof(params), name


def test_sessions_of_impossible_sizes(shapes: native.Engine) -> None:
    for size in ((63, 64, 1), (64, -8, 1), (2**31 - 8, 64, 1), (64, 64, 0), (64, 64, -1), (64, 64, 2**31 - 1)):
        with pytest.raises(ParameterError):
            shapes.session(*size)
    expected = r"at least \d+\.\d TB of memory is needed for 4096 images of 4096 x 4096 pixels, and .* can be had"
    with pytest.raises(OutOfMemoryError, match=expected):
        shapes.session(4096, 4096, 4096)


def test_devices(library: native.Library, shapes_dir: Path) -> None:
    with pytest.raises(ParameterError, match="device 'tpu' is unknown"):
        library.open(shapes_dir, device="tpu")
    with pytest.raises(ParameterError, match="device 'cuda:1234567890' is unknown"):
        library.open(shapes_dir, device="cuda:1234567890")
    session = library.open(shapes_dir).session()
    params = library.init("generate_params")
    params.latents = structures.Tensor((ctypes.c_float * 4)(), (ctypes.c_int64 * 4)(1, 4, 16, 16), 4, 1)
    assert library.lib.ebca_session_generate(session.handle, byref(params), byref(c_void_p())) == 1
    assert "cannot read the memory of a GPU" in library.last_error()


def test_an_onnxruntime_that_is_missing_or_another_library(
    library: native.Library, shapes_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="EBCA_ORT_LIB"):
        library.open(shapes_dir, onnxruntime=tmp_path / "libonnxruntime.so")
    with pytest.raises(BackendError, match="no OrtGetApiBase"):
        library.open(shapes_dir, onnxruntime="libm.so.6")


def test_paths_that_are_not_engine_directories(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        library.open(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"has no manifest\.json"):
        library.open(tmp_path)
    copy = tmp_path / "engine"
    shutil.copytree(shapes_dir, copy)
    weights = copy / "unet" / "segment_03.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(EngineError, match="truncated or changed"):
        library.open(copy)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EngineError, match="is corrupted"):
        library.open(copy, cache=tmp_path / "cache")
    weights.unlink()
    with pytest.raises(EngineError, match="is missing"):
        library.open(copy)


def test_manifests_are_untrusted_input(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    """Every value of a manifest replaced by values of other types and sizes; texts cut off anywhere; paths outside."""
    copy = tmp_path / "engine"
    shutil.copytree(shapes_dir, copy)
    text = (copy / "manifest.json").read_text()

    def refused(manifest: str | bytes, *, may_open: bool = False) -> str:
        contents = manifest if isinstance(manifest, bytes) else manifest.encode()
        (copy / "manifest.json").write_bytes(restamped(contents))
        try:
            library.open(copy, onnxruntime="libm.so.6")
        except EngineError as error:
            return str(error)
        except BackendError:
            # The manifest was read; the library is refused next.
            assert may_open
        return ""

    for length in range(0, len(text), len(text) // 40):
        assert "cannot be read" in refused(text[:length])
    assert "cannot be read" in refused(b"\xff\xfe" + text.encode())
    assert "deeper than" in refused("[" * 100_000)
    assert "not an ebca manifest" in refused("[]")
    assert "version 99" in refused(text.replace('"version": 2', '"version": 99', 1))
    path = "unet/segment_03.onnx.data"
    for outside in ("../../etc/passwd", "/etc/passwd", "unet/../../x", "C:\\x", "a\\b", "./x", "a//b"):
        assert "outside the engine directory" in refused(text.replace(path, json.dumps(outside)[1:-1]))
    rng = np.random.default_rng(0)
    strange: list[Any] = [None, -1, 0, 2**63, 2**200, 1e308, "", "\0", "x" * 5000, [], {}, True, [[]], {"a": None}]
    for index in range(200):
        data = json.loads(text)
        *way, last = _random_way(data, rng)
        holder = data
        for key in way:
            holder = holder[key]
        holder[last] = strange[index % len(strange)]
        refused(json.dumps(data), may_open=True)


def _random_way(data: Any, rng: np.random.Generator) -> list[Any]:
    """The keys of a random value, every level equally likely."""
    way = []
    while isinstance(data, (dict, list)) and data and (not way or rng.random() < 0.8):
        keys = list(data) if isinstance(data, dict) else range(len(data))
        way.append(keys[int(rng.integers(len(keys)))])
        data = data[way[-1]]
    return way


def test_prepared_engines_are_shared_with_python(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    """One folder, one key: either opens what the other prepared, without preparing anything."""
    for first, cache in (("c", tmp_path / "c"), ("python", tmp_path / "python")):
        done: dict[str, list[str]] = {"c": [], "python": []}

        def opened_by_c(cache: Path = cache, done: dict[str, list[str]] = done) -> None:
            library.open(shapes_dir, cache=cache, on_prepare=lambda *one: done["c"].append(one[2])).close()

        def opened_by_python(cache: Path = cache, done: dict[str, list[str]] = done) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EBCA_CACHE_DIR", str(cache))
                ebca.load("shapes", on_prepare=lambda *one: done["python"].append(one[2])).close()

        both: list[Callable[[], None]] = [opened_by_c, opened_by_python]
        for load in both if first == "c" else both[::-1]:
            load()
        assert done.pop(first)[-1] == "" and list(done.values()) == [[]]
        folder = next(cache.iterdir())
        (folder / "segment_03.onnx").write_bytes(b"broken")
        again: list[str] = []
        engine = library.open(shapes_dir, cache=cache, on_prepare=lambda *one, to=again: to.append(one[2]))
        assert again == ["segment_03", ""]
        engine.close()


def test_several_threads_prepare_at_once(
    library: native.Library, shapes_dir: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    made_by: list[int] = []

    def work(index: int) -> bool:
        engine = library.open(shapes_dir, cache=tmp_path, on_prepare=lambda *one: made_by.append(index))
        session = engine.session()
        made = session.generate(PROMPT, steps=3, seed=1, output="latents").latents
        session.close()
        engine.close()
        return np.array_equal(made, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(set(made_by)) == 1


def test_a_cache_that_cannot_be_written(
    library: native.Library, shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    told: list[tuple[int, str]] = []
    cache = tmp_path / "file" / "cache"
    engine = library.open(shapes_dir, cache=cache, log=lambda level, text: told.append((level, text)))
    with engine.session() as session:
        assert session.generate("a red circle", steps=1).pixels is not None
    (line,) = [text for _, text in told]
    assert str(cache) in line and "temporary folder" in line and "set EBCA_CACHE_DIR" in line
    assert len(list((tmp_path / "tmp").glob("ebca-prepared-*/*/*.onnx"))) > 5
    engine.close()
    assert list((tmp_path / "tmp").glob("ebca-*")) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(EngineError, match=r"nor in a temporary folder .*; set EBCA_CACHE_DIR"):
        library.open(shapes_dir, cache=cache)


def test_sizes_and_counts_have_limits(library: native.Library, shapes: native.Engine) -> None:
    for asked, text in (
        ({"height": 64, "width": 1_000_000}, "64 x 1000000 pixels are too many.*16777216"),
        ({"batch": 100_000}, "batch is 100000; make several calls of up to 4096"),
    ):
        with pytest.raises(ParameterError, match=text):
            shapes.session(**asked)


def test_python_and_c_clean_up_after_each_other(
    library: native.Library, shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("tmp/ebca-prepared-dead", "tmp/ebca-prepared-new", "tmp/other"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("ebca-prepared-dead", "other"):
        os.utime(tmp_path / "tmp" / folder, (1, 1))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "file").write_text("")
    library.open(shapes_dir, cache=tmp_path / "file").close()
    left = {path.name for path in (tmp_path / "tmp").iterdir()}
    # ONNX Runtime has files of its own there.
    assert left - {".ses"} == {"ebca-prepared-new", "other"}
    # And in the cache: a component that a killed process was preparing.
    cache = tmp_path / "cache"
    library.open(shapes_dir, cache=cache).close()
    (folder,) = cache.iterdir()
    (folder / ".segment_00.AbCdEf").mkdir()
    (folder / "segment_00.json").unlink()
    library.open(shapes_dir, cache=cache).close()
    assert not (folder / ".segment_00.AbCdEf").exists() and (folder / "segment_00.json").is_file()


def test_a_callback_cancels_at_any_step(session: native.Session, expected: np.ndarray) -> None:
    for last in range(4):
        with pytest.raises(CancelledError, match=f"cancelled after {last + 1} of 4 evaluations"):
            session.generate(PROMPT, steps=3, seed=1, on_step=lambda info, last=last: info.index != last)
    assert np.array_equal(session.generate(PROMPT, steps=3, seed=1, output="latents").latents, expected)


def test_cancel_from_another_thread(session: native.Session, expected: np.ndarray) -> None:
    started = threading.Event()

    def cancel() -> None:
        started.wait(30)
        session.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(CancelledError):
        session.generate(PROMPT, steps=50, seed=1, on_step=lambda info: started.set())
    other.join()
    with pytest.raises(CancelledError, match="after 2 of 4"):
        session.generate(PROMPT, steps=3, seed=1, on_step=lambda info: session.cancel() if info.index == 1 else None)
    assert np.array_equal(session.generate(PROMPT, steps=3, seed=1, output="latents").latents, expected)


def test_a_session_refuses_a_second_call(session: native.Session, expected: np.ndarray) -> None:
    refusals: list[str] = []

    def call_again(info: Any) -> None:
        with pytest.raises(ParameterError) as caught:
            session.generate(PROMPT, steps=1)
        refusals.append(str(caught.value))

    session.generate(PROMPT, steps=3, on_step=call_again)
    assert len(refusals) == 4 and "in another call" in refusals[0]
    assert np.array_equal(session.generate(PROMPT, steps=3, seed=1, output="latents").latents, expected)


def test_eight_threads_with_a_session_each(shapes: native.Engine, expected: np.ndarray) -> None:
    sessions = [shapes.session() for _ in range(8)]

    def work(index: int) -> bool:
        for _ in range(3):
            made = sessions[index].generate(PROMPT, steps=3, seed=1, output="latents").latents
            if not np.array_equal(made, expected):
                return False
            with pytest.raises(ParameterError, match=f"seeds has {index + 2} values"):
                sessions[index].generate(PROMPT, seed=list(range(index + 2)))
            assert f"seeds has {index + 2} values" in sessions[index].last_error()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    for session in sessions:
        session.close()


def test_a_session_outlives_its_engine(library: native.Library, shapes_dir: Path, expected: np.ndarray) -> None:
    engine = library.open(shapes_dir)
    session = engine.session()
    engine.close()
    assert np.array_equal(session.generate(PROMPT, steps=3, seed=1, output="latents").latents, expected)
    session.close()


def test_a_truncated_prompt_is_logged(library: native.Library, shapes_dir: Path) -> None:
    said: list[tuple[int, str]] = []
    session = library.open(shapes_dir, log=lambda *one: said.append(one)).session()
    session.generate(" ".join(["circle"] * 200), steps=1, output="latents", long_prompts=False)
    ((level, message),) = said
    assert level == 0 and "the prompt is longer than" in message and "dropped: 'circle" in message


def test_what_is_read_otherwise_than_meant_is_logged(library: native.Library, shapes_dir: Path) -> None:
    said: list[str] = []
    session = library.open(shapes_dir, log=lambda level, text: said.append(text)).session(64, 64)
    image = np.zeros((64, 64, 4), np.uint8)
    given = {"steps": 2, "output": "latents"}
    session.generate("a (red:1.3) circle", negative_prompt="(16:9) (at 5:30) (:3)", image=image, strength=1.0, **given)
    session.generate("a circle" + " \u00fc" * 5000, long_prompts=False, **given)
    texts = [text for text in said if not text.startswith("device")]
    assert texts[0] == "images[0] has transparent pixels; they are composited on white"
    assert texts[1].startswith("the prompt is longer than") and texts[1].endswith(" more characters)'")
    assert len(texts) == 2 and len(texts[1]) < 250


@pytest.mark.parametrize(
    "prompt", ["a (red", "é [a\n", "a) b", "[a:1.3]", "[a|b]", "(a:11)", "(" * 30 + "a" + ")" * 30]
)
def test_wrong_syntax_of_weights_is_told_as_python_tells_it(
    shapes: native.Engine, python_shapes: ebca.Engine, prompt: str
) -> None:
    told = []
    for engine in (shapes, python_shapes):
        session = engine.session(64, 64)
        with pytest.raises(ParameterError) as refused:
            session.generate(prompt, steps=1, output="latents")
        told.append(str(refused.value).replace("=False (ebca-run: --no-prompt-weighting)", " = 0"))
        session.close()
    assert told[0] == told[1]


def test_the_functions_of_the_header_are_exported_and_no_others(library_file: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("there is no nm to list symbols with")
    lines = building.run("nm", "--dynamic", "--defined-only", library_file).splitlines()
    names = {line.split()[-1].partition("@")[0] for line in lines if line.split()[1] != "A"}
    declared = set(re.findall(r"^EBCA_API [^;(]*?(\w+)\(", (INCLUDE / "ebca.h").read_text(), re.MULTILINE))
    assert len(declared) > 20 and names == declared


def test_the_c_header_is_also_one_of_old_cpp(tmp_path: Path) -> None:
    source = tmp_path / "host.cpp"
    source.write_text('#include "ebca.h"\nint main() { return 0; }\n')
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}", "-fsyntax-only"]
    building.run("c++", "-std=c++11", *strict, source)


HOST = r"""
#include <ebca.hpp>
#include <cstdio>
#include <stdexcept>

int main(int, char** arguments) {
    ebca::EngineParams open;
    open.path = arguments[1];
    open.onnxruntime_library = arguments[2];
    ebca::Engine engine(open);
    ebca::Session session(engine);
    ebca::Text prompt("a red circle"), change("a blue square");
    ebca::EditParams edit;
    edit.prompt = change;
    edit.alpha = ebca::step(0.5, 0.5);
    ebca::GenerateParams make;
    make.prompt = prompt;
    make.steps = 3;
    make.edits = &edit;
    make.edit_count = 1;
    make.gamma_norm = ebca::constant(0.01);
    int steps = 0;
    ebca::Result result = session.generate(make, [&](const ebca_step_info&) { return ++steps > 0; });
    std::printf("%d %dx%d %s\n", steps, result->width, result->height, result->task);
    try {
        session.generate(make, [](const ebca_step_info&) -> bool { throw std::runtime_error("from the host"); });
    } catch (const std::runtime_error& error) {
        std::printf("%s\n", error.what());
    }
    make.steps = 0;
    try {
        session.generate(make);
    } catch (const ebca::Error& error) {
        std::printf("%d %s\n", error.status(), error.what());
    }
}
"""


def test_a_cmake_host_finds_the_installed_package(
    cmake_build: Path, onnxruntime_file: Path, shapes_dir: Path, shapes: native.Engine, tmp_path: Path
) -> None:
    prefix, host = tmp_path / "prefix", tmp_path / "host"
    building.run("cmake", "--install", cmake_build, "--prefix", prefix)
    assert (prefix / "share" / "ebca" / "kernels" / "manifest.json").is_file()
    host.mkdir()
    (host / "main.cpp").write_text(HOST)
    (host / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(host LANGUAGES CXX)\nset(CMAKE_CXX_STANDARD 17)\n"
        "find_package(ebca 0.1 REQUIRED)\nadd_executable(host main.cpp)\ntarget_link_libraries(host ebca::ebca)\n"
    )
    building.run("cmake", "-G", "Ninja", "-S", host, "-B", host / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    building.run("cmake", "--build", host / "build")
    made = subprocess.run(
        [host / "build" / "host", shapes_dir, onnxruntime_file], capture_output=True, text=True, check=True
    )
    first, second, third = made.stdout.splitlines()
    assert first == "4 64x64 text-to-image"
    assert second == "from the host"
    assert third.startswith("1 steps is 0")
