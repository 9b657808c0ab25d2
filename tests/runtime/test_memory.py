"""Calls that cannot end well are refused before anything is computed, in one line that says what is missing."""

import dataclasses
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.memory_of_decoding import check_given_back

import ebca
from ebca.engines.contract.tensors import TensorSpec
from ebca.errors import OutOfMemoryError, ParameterError
from ebca.runtime import memory
from ebca.runtime.execution.buffers import Buffers, buffer_bytes
from ebca.runtime.images import inputs
from ebca.runtime.sampling.repaint import RePaintSchedule
from ebca.runtime.schema import parameters as rules

SIZES = {"batch": 2, "contexts": 2, "tokens": 24, "height": 10, "width": 6}


@pytest.fixture(scope="module")
def engine(shapes_dir: Path) -> Any:
    with ebca.load(shapes_dir, device="cpu") as opened:
        yield opened


def repeated(*shape: int) -> np.ndarray:
    """An array of that shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def test_the_bytes_of_the_buffers_are_those_that_are_allocated(engine: Any) -> None:
    buffers = Buffers(engine.manifest.unet, SIZES, engine.device)
    allocated = sum(buffers.memory.values())
    # Each array of the time embeddings begins at a multiple of 256 bytes.
    slack = 256 * len(buffers.time_embeddings.arrays)
    assert allocated - slack <= buffer_bytes(engine.manifest.unet, SIZES) <= allocated


def test_nothing_overflows_at_absurd_sizes(engine: Any) -> None:
    sizes = {"batch": 2**40, "contexts": 2**20, "tokens": 2**20, "height": 2**30, "width": 2**30}
    assert buffer_bytes(engine.manifest.unet, sizes) > 2**110


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda e: e.session(64, 10**6), "64 x 1000000 pixels are too many.*16777216"),
        (lambda e: e.session(10**12, 10**12), "pixels are too many"),
        (lambda e: e.session(64, 64, 100_000), "batch is 100000; .* up to 4096 images"),
        (lambda e: e.session(64, 64, 10**30), "batch is 10{30};"),
        (
            lambda e: e.session(4096, 4096, 4096),
            r"at least \d+\.\d TB of memory is needed for 4096 images of 4096 x 4096",
        ),
        (lambda e: ebca.Denoiser(e)(repeated(2, 4, 8, 10**7), 1.0, repeated(2, 1, 24, 128)), "pixels are too many"),
        (
            lambda e: ebca.Denoiser(e)(repeated(10**7, 4, 64, 64), 1.0, repeated(10**7, 1, 24, 128)),
            "needed for 10000000 rows of 64 x 64 latents, and .*; make a smaller image",
        ),
        (
            lambda e: e.session().generate(prompt_embeds=repeated(1, 10**9, 128), guidance_scale=1, steps=1),
            r"needed for 1 image of 64 x 64 pixels",
        ),
        (lambda e: e.session().generate(["a"] * 100_000, steps=1), "100000 texts for a batch of 1"),
        (lambda e: e.session().generate("a", steps=1, seed=range(100_000)), "seed has 100000 values"),
        (
            lambda e: e.session().generate("a", image=repeated(40_000, 40_000, 3)),
            "image has more than 178956970 pixels",
        ),
        (lambda e: e.session().invert(repeated(40_000, 40_000, 3), "a"), "image has more than 178956970 pixels"),
    ],
)
def test_absurd_sizes_are_refused_at_once(engine: Any, ask: Any, expected: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ParameterError, match=expected):
        ask(engine)
    # Nothing is computed: a moment even on a busy machine.
    assert time.perf_counter() - began < 5


def generate(engine: Any, **asked: Any) -> Any:
    with engine.session() as session:
        return session.generate("a red circle", seed=1, steps=2, **asked)


def test_what_fits_is_not_refused_and_what_does_not_is(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    monkeypatch.setattr(memory, "_compare", lambda need, *_: needed.append(need))
    generate(engine)
    monkeypatch.undo()
    most = max(needed)
    assert most > 1e6
    monkeypatch.setattr(memory, "available_bytes", lambda: most)
    generate(engine)
    monkeypatch.setattr(memory, "available_bytes", lambda: most - 1)
    with pytest.raises(OutOfMemoryError, match="1 image of 64 x 64 pixels") as caught:
        generate(engine)
    assert "at least" in caught.value.problem and "fewer" in caught.value.remedy


def test_each_of_these_needs_more(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def need(**asked: Any) -> int:
        found: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_compare", lambda need, *_: found.append(need))
            with engine.session(128, 128) as session:
                patch.setattr(session, "_executor", lambda *_: (_ for _ in ()).throw(KeyError("enough")))
                with pytest.raises(KeyError, match="enough"):
                    session.generate("a red circle", **{"steps": 50, "output": "latents", "guidance_scale": 1} | asked)
        return max(found)

    plain = need()
    evaluation = 2 * len(engine.manifest.unet.layers) * 4
    assert need(energies=True) - plain == 50 * evaluation
    tokens, side = engine.manifest.text_encoder.max_length, 128 // engine.manifest.vae.downscale
    assert need(attention_maps=True) - plain == tokens * side * side * 12
    # One prediction [1,4,32,32] and 24 step sizes per evaluation.
    assert need(steps=100) - plain == 50 * 4 * (4 * side * side + tokens)
    assert need(guidance_scale=7.5) > 1.5 * plain
    assert need(edits=[ebca.Edit("blue")] * 3) > plain
    assert need(output="np") > plain


def test_memory_that_is_short_while_it_runs_is_one_line(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr(engine, "decode", short)
    with pytest.raises(OutOfMemoryError, match="the memory is too small for 1 image of 64 x 64 pixels; make a smaller"):
        generate(engine)


def test_a_gpu_is_asked_for_its_own_memory_and_counts_in_32_bits(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(room=lambda: 10**12, name="cuda:0")
    components = SimpleNamespace(
        device=gpu, manifest=engine.manifest, backend=engine.backend, precision="fp32", name="engine"
    )
    memory.check_evaluation(components, SIZES, "this")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"a tensor of \d+ elements is needed for this.*2147483647"):
        memory.check_evaluation(components, {**SIZES, "batch": 10**4, "height": 64, "width": 64}, "this")  # type: ignore[arg-type]
    gpu.room = lambda: 10**6
    with pytest.raises(OutOfMemoryError, match=r"MB of memory on cuda:0 is needed for this, and 1 MB can be had"):
        memory.check_evaluation(components, {**SIZES, "height": 64}, "this")  # type: ignore[arg-type]


def test_what_a_component_holds_inside_depends_on_the_precision_and_is_unknown_for_plans(engine: Any) -> None:
    manifest = engine.manifest
    spec = dataclasses.replace(manifest.components["vae_decoder"], scratch=((TensorSpec("float32", ("batch", 5)),), ()))
    some = dataclasses.replace(manifest, components={"c": spec})
    components: Any = SimpleNamespace(manifest=some, backend=engine.backend, precision="fp32")
    assert memory.scratch_bytes(components, "c", {"batch": 3}) == 60
    components.precision = "bf16"
    assert memory.scratch_bytes(components, "c", {"batch": 3}) == 30
    components.manifest = dataclasses.replace(some, plans={engine.backend.name: None})  # type: ignore[dict-item]
    assert memory.scratch_bytes(components, "c", {"batch": 3}) == 0


@pytest.mark.parametrize(("length", "count"), [(10, 10**9), (1, 10**5), (10**9, 2)])
def test_repaint_has_a_limited_number_of_moves(length: int, count: int) -> None:
    alphas = np.linspace(0.99, 0.01, 1000)
    if length > 50:
        assert RePaintSchedule(50, length, count, alphas).evaluations() == 50
    else:
        with pytest.raises(
            ParameterError, match=f"jump_count is {count}, which makes more than {rules.MAX_MOVES} moves"
        ):
            RePaintSchedule(50, length, count, alphas)


def test_the_number_of_moves_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    alphas = np.linspace(0.99, 0.01, 1000)
    moves = len(list(RePaintSchedule(25, 4, 3, alphas).moves()))
    monkeypatch.setattr(rules, "MAX_MOVES", moves)
    RePaintSchedule(25, 4, 3, alphas)
    monkeypatch.setattr(rules, "MAX_MOVES", moves - 1)
    with pytest.raises(ParameterError, match="jump_count is 3"):
        RePaintSchedule(25, 4, 3, alphas)


def test_a_file_of_absurd_size_is_one_line(tmp_path: Path) -> None:
    def chunk(data: bytes) -> bytes:
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    file = tmp_path / "large.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + header) + chunk(b"IDAT" + zlib.compress(b"")))
    for load in (inputs.load_images, inputs.load_masks):
        with pytest.raises(ParameterError, match=r"large\.png' has more than 178956970 pixels; make it smaller before"):
            load(file, 64, 64)


def test_the_memory_of_decoding_is_given_back(shapes_dir: Path) -> None:
    check_given_back(shapes_dir)
