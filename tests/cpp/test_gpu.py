"""The GPU's side of the C++ library on a machine without a GPU: what a step does over a driver on host memory (counted,
and its results those of the CPU), the real driver's code over a stand-in for libcuda, kernels chosen and packed as
Python's launcher does it, and errors for missing parts."""

import ctypes
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import building

from ebca.errors import BackendError, EbcaError, ParameterError
from ebca.plugins.energy_attention import GUIDED
from ebca.plugins.energy_attention.launches import OpShape, launches
from ebca.plugins.exclusive_attention import TENSORS
from ebca.plugins.exclusive_attention import launches as exclusion
from ebca.plugins.kernels.binaries import FOLDER, KernelLaunch, KernelSet, pack_key
from ebca.plugins.sampling import launches as sampling
from ebca.runtime import native

HERE = Path(__file__).parent
CPP = HERE.parents[1] / "runtime" / "cpp"

Probe = Callable[..., Any]


@pytest.fixture(scope="module")
def programs(cmake_build: Path, header_options: list[str]) -> Path:
    """A build folder with gpu_probe and fake_cuda/libcuda.so.1."""
    with building.building(cmake_build):
        building.run("cmake", "-S", str(CPP), "-B", str(cmake_build), "-DEBCA_BUILD_TESTS=ON", *header_options)
        building.run("cmake", "--build", str(cmake_build), "--target", "gpu_probe", "fake_cuda")
    return cmake_build


@pytest.fixture(scope="module")
def probe(programs: Path) -> Probe:
    """Runs gpu_probe; its answer."""

    def run(*words: str | Path, given: str = "", **environment: str) -> Any:
        command = [programs / "gpu_probe", *words]
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def steps(probe: Probe, tiny_engine_dir: Path, onnxruntime_file: Path) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = probe("steps", tiny_engine_dir, onnxruntime_file)
    return answer


def test_a_step_is_one_launch_and_one_wait_whatever_changes(steps: list[dict[str, Any]]) -> None:
    # Three runs with other inputs, gammas, weights and masks each.
    recorded = [one for one in steps if one.get("refused") is False]
    assert len(recorded) == 6
    for one in recorded:
        assert one["equal"], one
        assert one["done"] == {"launch": 3, "synchronize": 3}, one


def test_a_step_that_cannot_be_captured_runs_call_by_call_and_is_logged(steps: list[dict[str, Any]]) -> None:
    refused = [one for one in steps if one.get("refused") is True]
    assert len(refused) == 6
    for one in refused:
        assert one["equal"] and "launch" not in one["done"] and one["done"]["synchronize"] == 3, one
    warnings = [one["warnings"] for one in steps if "warnings" in one]
    assert [len(lines) for lines in warnings] == [0, 0, 3, 6]
    assert all("without a CUDA graph, call by call: operation not permitted" in line for line in warnings[-1])


def test_a_step_finds_what_is_not_finite_and_can_be_cancelled(steps: list[dict[str, Any]]) -> None:
    assert [one["nonfinite"] for one in steps if "nonfinite" in one] == ["segment_00"] * 4
    assert [one["cancelled"] for one in steps if "cancelled" in one] == ["cancelled in an evaluation"] * 4


def test_all_memory_is_freed(steps: list[dict[str, Any]]) -> None:
    assert [one["live"] for one in steps if "live" in one] == [0, 0]


# Arrays of the text encoder: token ids and embeddings; of two, twice that. Without `skip_prk_steps`, as in the
# configuration of Stable Diffusion XL, PNDM begins with three steps of four evaluations.
@pytest.mark.parametrize(
    ("engine", "of_texts", "of_pndm"), [("tiny_engine_dir", 2, 5), ("tiny_xl_dir", 4, 13)], ids=["tiny", "tiny-xl"]
)
def test_a_generation_is_one_launch_and_the_cpu_s(
    probe: Probe, request: pytest.FixtureRequest, onnxruntime_file: Path, engine: str, of_texts: int, of_pndm: int
) -> None:
    *made, painted, inverted, end = probe("generate", request.getfixturevalue(engine), onnxruntime_file, FOLDER)
    assert [one["evaluations"] for one in made] == [4, 4, 4, of_pndm, 70, 4, 4, 4, 70, 4, 4]
    for one in made:
        assert one["equal"] and one["seconds"] == one["evaluations"], one
        assert one["first"]["launch"] == one["again"]["launch"] == 1
        # A second image records nothing. It waits for the text encoder, which takes both prompts at once, for the
        # run, and for the VAE.
        images = one["pixels"] > 0
        again = one["again"]
        assert "capture" not in again and "chain" not in again and again["synchronize"] == 2 + images
        # Beside these, one input and one output of the VAE; the steps make none.
        assert again["allocate"] == again["allocate_host"] == of_texts + 2 * images
    plain, edited, reset, multistep, long_one, short_again, _, placed, placed_long, placed_again, _ = (
        one["first"] for one in made
    )
    # Both variants of the schedule. Other steps need another chain, more than fit the buffers other recordings, fewer
    # do not.
    assert plain["capture"] == edited["capture"] == 2 and "capture" not in reset
    assert "capture" not in multistep and multistep["chain"] == 1
    assert long_one["capture"] == 2 and "capture" not in short_again
    # So it is with subjects, whose groups need an executor of their own.
    assert placed["capture"] == placed_long["capture"] == 2 and "capture" not in placed_again
    # RePaint: the host makes the bias.
    assert painted == {"equal": True, "differs": True} and inverted["equal"]
    assert end["live"] == 0


def test_other_inputs_of_stable_diffusion_xl_need_no_new_recording(
    probe: Probe, tiny_xl_dir: Path, onnxruntime_file: Path
) -> None:
    *made, end = probe("added", tiny_xl_dir, onnxruntime_file, FOLDER)
    assert len(made) == 3
    for one in made:
        assert one["equal"] and one["differs"], one
        assert one["done"]["launch"] == 1 and "capture" not in one["done"]
    assert end["live"] == 0


def test_generations_that_are_observed_cancelled_or_fail(
    probe: Probe, tiny_engine_dir: Path, onnxruntime_file: Path
) -> None:
    answers = probe("watch", tiny_engine_dir, onnxruntime_file, FOLDER)
    assert [one["refused"] for one in answers] == ["", "chain", "capture"]
    for one, whole_run, per_step in zip(answers, (1, 4, 0), (1, 1, 0), strict=True):
        assert one["equal"] and one["equal_after"]
        assert one["done"].get("launch", 0) == whole_run
        observed, cancelled = one["observed"], one["cancelled"]
        assert observed["equal"] and observed["done"].get("launch", 0) == 4 * per_step
        assert cancelled["equal"] and cancelled["done"].get("launch", 0) == 2 * per_step
        assert cancelled["cancelled"] == cancelled["cancelled_on_cpu"] == "cancelled after 2 of 4 evaluations"
        assert re.match(r"the result at timestep \d+ is not finite; lower gamma_attn", one["bad"])
    # Graphs that cannot be joined take as long one after the other, so that is no warning.
    assert [len(one["warnings"]) for one in answers] == [0, 0, 2]
    (note,) = answers[1]["notes"]
    assert note.endswith("launched one by one, because graphs cannot be joined: child graphs are not supported")
    assert answers[0]["notes"] == answers[2]["notes"] == []


OPENED_FOR = {
    # A prompt and its negative prompt; one image; both rows of the UNet.
    "text_encoder": {"batch": 2},
    "vae_decoder": {"batch": 1, "height": 16, "width": 16, "4*height": 64, "4*width": 64},
    "segment_01": {
        "batch": 2, "contexts": 1, "tokens": 24, "height_1": 8, "width_1": 8, "height_1*width_1": 64,
        "height_2": 4, "width_2": 4, "height_2*width_2": 16,
    },
}  # fmt: skip


def test_components_are_opened_per_size_also_while_they_are_prepared(
    probe: Probe, shapes_dir: Path, onnxruntime_file: Path, tmp_path: Path
) -> None:
    _, dimensions, *_ = probe("sizes", shapes_dir, onnxruntime_file, FOLDER, EBCA_CACHE_DIR=str(tmp_path))
    assert dimensions["dimensions"] == OPENED_FOR


@pytest.mark.usefixtures("shapes")  # which is prepared by then
def test_components_are_opened_per_size_and_again_when_memory_is_short(
    probe: Probe, shapes_dir: Path, onnxruntime_file: Path
) -> None:
    first, dimensions, *others, full, end = probe("sizes", shapes_dir, onnxruntime_file, FOLDER)
    assert dimensions["dimensions"] == OPENED_FOR
    every = {one["name"]: one for one in (first, *others)}
    assert all(one["equal"] and one["done"]["launch"] == 1 for one in every.values()), every
    # One time embedding is for the rows of the UNet, one for all timesteps of a run.
    assert first["opened"].pop("time_embedding") == 2 and set(first["opened"].values()) == {1}
    assert {"text_encoder", "vae_decoder"} <= set(first["opened"])
    # Everything is open before anything is recorded.
    assert first["done"]["capture"] == 2
    assert every["square again"]["opened"] == {} and "capture" not in every["square again"]["done"]
    # Prompts have one size; text encoder and VAE stay open. What has been opened since outdates recordings.
    wide, after = every["wide"], every["square after wide"]
    assert "text_encoder" not in wide["opened"] and wide["opened"]["vae_decoder"] == 1
    assert after["opened"] == {} and after["done"]["capture"] == 2
    # The time embedding does not depend on the number of contexts.
    assert "time_embedding" not in every["edited"]["opened"]
    # The text encoder and the VAE make room for a segment, and open again.
    short = every["tall, once short of memory"]
    assert short["opened"]["vae_decoder"] == 2 and short["opened"]["segment_01"] == 1
    assert every["tall again"]["opened"] == {"text_encoder": 1}
    assert full["full"] == "the GPU is full; make a smaller image"
    assert end["live"] == 0


def test_a_result_moves_to_the_gpu(probe: Probe) -> None:
    found = probe("result")
    assert found.pop("refused") == "device 'cpu' has no memory of a GPU; open the engine on 'cuda'"
    assert found.pop("twice") == "the result is in the memory of a GPU already; use its addresses there"
    assert found == {
        "stayed": True,
        "blocks": 1,
        "waited": True,
        "memory": [1, 1, 1, 0],
        "pixels": [1, 2, 3],
        "latents": [4, 4],
        "embeds": [5, 5, 5],
        "pooled": [6, 6, 6],
        "apart": True,
        "timestep": 981,
        "left": 0,
    }


def test_threads_share_a_device(probe: Probe, tiny_engine_dir: Path, onnxruntime_file: Path) -> None:
    answer = probe("threads", tiny_engine_dir, onnxruntime_file, FOLDER)
    assert answer == {"equal": True, "launches": 4, "live": 0}


def test_kernels_take_the_place_of_the_op_s_graphs(probe: Probe, tiny_engine_dir: Path, onnxruntime_file: Path) -> None:
    *variants, end = probe("kernels", tiny_engine_dir, onnxruntime_file, FOLDER)
    assert len(variants) == 6
    for one in variants:
        # Attention alone is one launch a layer, the update a second, the maps of a layer for subjects another.
        maps = one["biased"] if one["variant"].endswith("_guided") else 0
        update = 0 if one["variant"].startswith("attention") else one["layers"]
        assert one["kernels"] == one["layers"] + update + maps > 0
        assert one["done"] == {"launch": 1, "synchronize": 1}
    assert end["live"] == 0 and 0 < end["loaded"] <= 12


def cases() -> Iterator[tuple[str, tuple[int, int], str, tuple[int, ...]]]:
    """Variant, compute capability, dtype, and batch, positions, contexts, tokens, heads, head_dim, groups."""
    variants = ("attention", "update", "update_masked")
    capabilities = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1), (10, 0))
    sizes = ((2, 4096, 1, 77, 8, 40), (2, 1024, 2, 77, 8, 80), (1, 64, 3, 77, 8, 160), (4, 300, 2, 77, 5, 64))
    yield from itertools.product(variants, capabilities, ("float16",), sizes)
    odd = ((1, 1, 1, 1, 1, 4), (3, 63, 2, 5, 2, 56), (1, 16384, 1, 77, 5, 64), (2, 256, 4, 154, 20, 64))
    yield from itertools.product(variants, ((8, 9),), ("float16", "bfloat16"), odd)
    guided = tuple(variant + GUIDED for variant in variants)
    with_groups = ((2, 256, 1, 77, 8, 160, 2), (1, 64, 3, 77, 8, 160, 16), (3, 63, 2, 5, 2, 56, 1))
    yield from itertools.product(guided, ((8, 0), (9, 0), (10, 0)), ("float16", "bfloat16"), with_groups)
    # Cases that no kernel serves.
    yield "update_guided", (8, 9), "float16", (2, 64, 1, 77, 8, 40)
    yield "attention_guided", (8, 9), "float16", (2, 64, 1, 77, 8, 40, 17)
    yield "update", (7, 5), "float16", (2, 64, 1, 77, 8, 40)
    yield "update", (8, 9), "float32", (2, 64, 1, 77, 8, 40)
    yield "update", (8, 9), "float16", (2, 64, 1, 77, 8, 41)
    yield "update", (8, 9), "float16", (2, 64, 1, 0, 8, 40)
    yield "update", (8, 9), "float16", (70000, 64, 1, 77, 8, 40)
    yield "update", (8, 9), "float16", (1, 2**24, 1, 77, 8, 160)
    yield "update", (8, 9), "float16", (1, 128, 1, 13_421_772, 1, 160)


def planned(kernels: KernelSet, variant: str, capability: tuple[int, int], dtype: str, sizes: Any) -> Any:
    """The launches of Python's launcher, in the form of gpu_probe."""
    inputs = ("q", "k", "v", "weights", "gamma_attn", "gamma_norm", "norm_factor", "tie", "mask", "bias")
    names = (*inputs, "token_groups", "out", "g", "maps", "partial", "column", "norm2", "head_maps")
    addresses = {name: 0x7F0000000000 + 4096 * (index + 1) for index, name in enumerate(names)}
    try:
        plan = launches(kernels, variant, capability, dtype, OpShape(*sizes))
    except EbcaError as error:
        return {"error": str(error)}
    return {
        "scratch": dict(plan.scratch),
        "scratch_bytes": plan.scratch_bytes,
        "launches": [described(kernels, one, addresses) for one in plan.launches],
    }


def described(kernels: KernelSet, one: KernelLaunch, addresses: dict[str, int]) -> dict[str, Any]:
    """A launch in the form of gpu_probe."""
    return {
        "kernel": one.binary.kernel,
        "pack": pack_key(one.binary),
        "offset": one.binary.offset,
        "grid": list(one.grid),
        "threads": one.binary.block[0],
        "shared_bytes": one.binary.shared_bytes,
        "image": hashlib.sha256(kernels.image(one.binary)).hexdigest(),
        "packed": one.pack(addresses).hex(),
    }


def test_kernels_are_chosen_and_packed_as_in_python(probe: Probe) -> None:
    every = list(cases())
    lines = "".join(
        f"{variant} {major} {minor} {dtype} {' '.join(map(str, (*sizes, 0)[:7]))}\n"
        for variant, (major, minor), dtype, sizes in every
    )
    kernels, refused = KernelSet.load(), 0
    for case, made in zip(every, probe("launches", FOLDER, given=lines), strict=True):
        expected = planned(kernels, *case)
        if "error" in expected:
            # The same texts; Python shows the sizes of a shape as an object.
            assert made["error"] == expected["error"] or "OpShape(" in expected["error"], (case, made, expected)
            refused += 1
        else:
            assert made == expected, case
    assert refused == 9


def test_kernels_of_sampling_are_launched_as_in_python(probe: Probe) -> None:
    # Images, rows, channels, input channels, height, width, contexts, tokens, width of contexts, evaluations, words.
    sizes = ((1, 2, 4, 4, 64, 64, 1, 77, 768, 64, 24064), (3, 3, 4, 9, 8, 24, 3, 154, 32, 128, 1))
    every = list(itertools.product(((8, 0), (8, 9), (9, 0), (12, 1), (10, 0)), sizes))
    lines = "".join(f"{major} {minor} {' '.join(map(str, size))}\n" for (major, minor), size in every)
    kernels, expected = KernelSet.load(), []
    for capability, (n, rows, c, c_in, h, w, contexts, tokens, width, room, words) in every:
        shapes = {
            "latents": (n, c, h, w), "sample": (rows, c_in, h, w), "contexts": (rows, contexts, tokens, width),
            "history": (room, n, c, h, w), "time_embeddings": (words,),
        }  # fmt: skip
        for name in ("begin", "embed", "end", "advance"):
            made = sampling.launch(name, shapes)
            one = kernels.launch(f"ebca_{name}", capability, (made.blocks, 1, 1), made.values)
            expected.append(described(kernels, one, in_order(one)))
    assert probe("sampling", FOLDER, given=lines) == expected


def in_order(one: KernelLaunch) -> dict[str, int]:
    """Addresses of a launch's tensors, as gpu_probe gives them."""
    pointers = [a.name.removesuffix("_ptr") for a in one.arguments if a.type == "pointer"]
    return {pointer: 0x7F0000000000 + 4096 * (i + 1) for i, pointer in enumerate(pointers)}


def test_the_kernel_of_exclusive_attention_is_launched_as_in_python(probe: Probe) -> None:
    # Layers, their stride, rows, contexts, groups, height, width; the last three are refused.
    sizes = (
        (5, 2 * 3 * 256, 2, 1, 3, 16, 16), (1, 1000, 3, 2, 5, 5, 7), (2, 31 * 1024, 1, 1, 31, 32, 32),
        (2, 99999, 1, 1, 2, 32, 33), (1, 32 * 64, 1, 1, 32, 8, 8), (2, 127, 1, 1, 2, 8, 8),
    )  # fmt: skip
    every = list(itertools.product(((8, 0), (9, 0), (12, 1), (10, 0)), sizes))
    lines = "".join(f"{major} {minor} {' '.join(map(str, size))}\n" for (major, minor), size in every)
    kernels, expected, refused = KernelSet.load(), [], 0
    for capability, (layers, stride, rows, contexts, groups, height, width) in every:
        letters = {
            "m": 9, "L": layers, "R": rows, "S": contexts, "G": groups, "N": height * width, "h": height, "w": width
        }  # fmt: skip
        shapes = {name: tuple(letters.get(str(d), d) for d in tensor.shape) for name, tensor in TENSORS.items()}
        try:
            made = exclusion.launch(shapes, stride)  # type: ignore[arg-type]
        except ParameterError as error:
            expected.append({"error": str(error)})
            refused += 1
            continue
        one = kernels.launch(exclusion.KERNEL, capability, (made.blocks, 1, 1), made.values)
        expected.append(described(kernels, one, in_order(one)))
    assert probe("exclusion", FOLDER, given=lines) == expected
    assert refused == 3 * 4


@pytest.mark.parametrize("damage", ["missing", "manifest", "version", "pack", "path"])
def test_damaged_kernels_are_refused(probe: Probe, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(FOLDER, folder)
    manifest = folder / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    if damage == "missing":
        shutil.rmtree(folder)
    elif damage == "manifest":
        manifest.write_text(text[: len(text) // 2], encoding="utf-8")
    elif damage == "version":
        manifest.write_text(text.replace('"version": 1', '"version": 2', 1), encoding="utf-8")
    elif damage == "path":
        manifest.write_text(text.replace('"sm_89.bin"', '"../sm_89.bin"'), encoding="utf-8")
    else:
        pack = folder / "sm_89.bin"
        data = bytearray(pack.read_bytes())
        data[1000] ^= 1
        pack.write_bytes(data)
    answer = probe("launches", folder, given="update 8 9 float16 2 64 1 77 8 40 0\n")
    message = answer[0]["error"] if damage == "pack" else answer["error"]
    assert str(folder) in message and "install ebca again" in message


def test_the_driver_s_code_works_in_order_and_frees_everything(probe: Probe, programs: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    answer = probe("driver", LD_LIBRARY_PATH=str(programs / "fake_cuda"), FAKE_CUDA_REPORT=str(report))
    assert answer["name"] == "cuda:0" and answer["capability"] == [8, 9]
    assert answer["copied"] and answer["replayed"] and answer["chained"]
    assert answer["refused"] == "the step cannot be captured: not while capturing"
    assert answer["full"].startswith("the GPU has no 1099512 MB left; make a smaller image")
    seen = json.loads(report.read_text(encoding="utf-8"))
    # Nothing outside the context, on another stream or inside a capture.
    assert seen["wrong"] == 0
    assert seen["launched"] == "image ebca_forward 3 2 1 128 1 1 1024 42"
    assert set(seen["live"]) == {"context", "executable", "graph", "memory", "module", "pinned", "stream"}
    assert not any(seen["live"].values()), seen


def test_the_driver_s_interface_is_cuda_h_s(tmp_path: Path) -> None:
    found = [
        folder for folder in (Path("/usr/local/cuda/include"), Path("/usr/include")) if (folder / "cuda.h").exists()
    ]
    if not found or shutil.which("c++") is None:
        pytest.skip("there is no cuda.h, or no compiler")
    program = tmp_path / "cuda_abi"
    building.run("c++", "-std=c++17", f"-I{CPP / 'src'}", f"-I{found[0]}", HERE / "cuda_abi.cpp", "-o", program)
    declared = (CPP / "src" / "devices" / "cuda_api.hpp").read_text(encoding="utf-8")
    for name in building.run(program).split():
        assert f"(*{name})(" in declared, name


def test_missing_parts_are_named(
    library: native.Library, probe: Probe, programs: Path, shapes_dir: Path, onnxruntime_file: Path
) -> None:
    assert (
        "no NVIDIA GPU; use device 'cpu'"
        in probe("driver", LD_LIBRARY_PATH=str(programs / "fake_cuda"), FAKE_CUDA_NO_GPU="1")["error"]
    )
    answer = probe("backend", onnxruntime_file)
    assert answer["status"] == 3 and "is built without CUDA; name the library of an onnxruntime-gpu" in answer["error"]
    answer = probe("backend", onnxruntime_file, EBCA_TRT_RTX_EP_LIB="/nowhere/provider.so")
    assert answer["status"] == 3 and "cannot load the provider '/nowhere/provider.so'" in answer["error"]
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        for device in ("cuda", "cuda:1"):
            with pytest.raises(BackendError, match=r"there is no NVIDIA driver .*; install one, or use device 'cpu'"):
                library.open(shapes_dir, device=device)


def test_components_open_on_the_cuda_provider(probe: Probe, shapes_dir: Path, tmp_path: Path) -> None:
    """Over stand-ins for NVIDIA's libraries, where nothing can run: options, dimensions, arena, where operators go."""
    sessions = pytest.importorskip("helpers.cuda_standins.sessions", reason="no stand-ins for NVIDIA's libraries")
    stand_ins = sessions.stand_ins(tmp_path)
    where = "from importlib.util import find_spec; print(find_spec('onnxruntime').submodule_search_locations[0])"
    found = subprocess.run([stand_ins.python, "-c", where], capture_output=True, text=True, check=True)
    (library,) = (Path(found.stdout.strip()) / "capi").glob("libonnxruntime.so*")
    opened = probe("components", shapes_dir, library, LD_LIBRARY_PATH=str(stand_ins.libraries))
    made = {"name": "onnxruntime-cuda", "opened": 9, "fixes_shapes": True, "shares_scratch": True}
    assert opened == [made, made]


def test_an_engine_that_cannot_open_on_a_gpu_holds_nothing(
    probe: Probe, programs: Path, tmp_path: Path, shapes_dir: Path, onnxruntime_file: Path
) -> None:
    report = tmp_path / "report.json"
    fake = {"LD_LIBRARY_PATH": str(programs / "fake_cuda"), "FAKE_CUDA_REPORT": str(report)}
    for kernels, message in (("", "kernels are not beside the installed library"), (str(FOLDER), "built without CUDA")):
        answer = probe("open", shapes_dir, onnxruntime_file, EBCA_KERNELS_DIR=kernels, **fake)
        assert answer["status"] == 3 and message in answer["error"]
        seen = json.loads(report.read_text(encoding="utf-8"))
        assert seen["wrong"] == 0 and seen["live"]["context"] == 0 and not any(seen["live"].values())


def test_operators_on_the_cpu_are_refused(probe: Probe, shapes_dir: Path, onnxruntime_file: Path) -> None:
    graph = shapes_dir / "unet" / "segment_01.onnx"
    cpu = "CPUExecutionProvider"
    assert probe("assignment", graph, onnxruntime_file, cpu) == {"provider": cpu}
    answer = probe("assignment", graph, onnxruntime_file, "CUDAExecutionProvider")
    assert answer["status"] == 3 and "MatMul" in answer["error"] and "of 'segment' elsewhere than on" in answer["error"]


def test_cpu_options_are_refused_on_a_gpu(library: native.Library, shapes_dir: Path) -> None:
    with pytest.raises(ParameterError, match=r"threads .* are for the CPU"):
        library.open(shapes_dir, device="cuda", threads=2)
