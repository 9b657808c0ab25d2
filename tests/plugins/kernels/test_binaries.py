"""The compiled GPU kernels: the committed set, the choice of a binary, packed arguments, and launches, without a
GPU."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.launcher import FakeLauncher
from hypothesis import given, settings
from hypothesis import strategies as st

from ebca.errors import BackendError, ParameterError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention import VARIANTS, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape, launches, scratch_bytes
from ebca.plugins.kernels.binaries import FOLDER, Binary, KernelSet
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary

# heads, head_dim, positions: SD 1.x, SD 2.x, SDXL, tiny, shapes
LAYERS = [
    *[(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64)],
    *[(5, 64, 9216), (10, 64, 2304), (20, 64, 144)],
    *[(10, 64, 4096), (20, 64, 1024)],
    *[(8, 4, 256), (8, 8, 64), (2, 48, 1024), (2, 56, 256)],
]


@pytest.fixture(scope="module")
def kernels() -> KernelSet:
    return KernelSet.load()


# ---- what a cubin says of itself


def parameter_offsets(cubin: bytes, kernel: str) -> list[tuple[int, int]]:
    """Offset and size of each parameter, from the EIATTR_KPARAM_INFO records of .nv.info.<kernel>."""
    assert cubin[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    strings = sections[names][4]
    found = {}
    for name, _, _, _, offset, length in sections:
        at = strings + name
        if cubin[at : cubin.index(b"\0", at)] != f".nv.info.{kernel}".encode():
            continue
        end = offset + length
        while offset < end:
            form, attribute, value = struct.unpack_from("<BBH", cubin, offset)
            offset += 4
            if form == 4:  # the value is a payload's length
                if attribute == 0x17:
                    _, ordinal, position, bits = struct.unpack_from("<IHHI", cubin, offset)
                    found[ordinal] = (position, bits >> 18)
                offset += value
    return [found[i] for i in range(len(found))]


def test_every_cubin_has_the_parameters_of_the_manifest(kernels: KernelSet) -> None:
    sizes = {"pointer": 8, "int32": 4, "float32": 4}
    checked = 0
    for binary in kernels.binaries:
        if binary.format == "cubin":
            expected = [(a.offset, sizes[a.type]) for a in kernels.arguments[binary.kernel]]
            assert parameter_offsets(kernels.image(binary), binary.kernel) == expected, binary
            checked += 1
    assert checked > 200


def test_every_ptx_has_the_parameters_of_the_manifest_and_a_low_version(kernels: KernelSet) -> None:
    types = {"u64": "pointer", "u32": "int32", "f32": "float32"}
    checked = 0
    for binary in kernels.binaries:
        if binary.format == "ptx":
            image = kernels.image(binary)
            assert image.endswith(b"\0")
            text = image.decode()
            assert ".version 8.0\n.target sm_80\n" in text
            entry = text[text.index(f".entry {binary.kernel}(") : text.index("\n)")]
            found = [types[kind] for kind in re.findall(r"\.param \.(\w+)", entry)]
            assert found == [a.type for a in kernels.arguments[binary.kernel]]
            checked += 1
    assert checked > 30


# ---- the committed set


def test_the_committed_set_is_made_from_this_source() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"] == ahead.source_digest(), "kernels.py or tuning.json changed: run `make kernels`"
    on_disk = {path.name for path in FOLDER.iterdir()}
    assert on_disk == {"manifest.json", *(pack["file"] for pack in manifest["packs"].values())}
    for pack in manifest["packs"].values():
        content = (FOLDER / pack["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (pack["size"], pack["sha256"])
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4e6


def test_the_committed_set_is_within_the_limits(kernels: KernelSet) -> None:
    assert kernels.capabilities() == ["8.0", "8.6", "8.9", "9.0", "12.0", "12.1"]
    for binary in kernels.binaries:
        assert binary.stack_bytes <= ahead.MAX_STACK_BYTES == 64, binary
        assert binary.shared_bytes <= ahead.MAX_SHARED_BYTES == 48 * 1024, binary
        assert 0 < binary.registers <= 255 and binary.num_warps in (1, 2, 4, 8), binary


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1), (10, 0), (8, 7)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_of_every_model_has_kernels(kernels: KernelSet, variant: str, capability: tuple[int, int]) -> None:
    own = capability not in ((10, 0), (8, 7))
    for heads, head_dim, positions in LAYERS:
        for dtype in ("float16", "bfloat16"):
            for contexts in (1, 3):
                plan = launches(
                    kernels, variant, capability, dtype, OpShape(2, positions, contexts, 77, heads, head_dim)
                )
                for launch in plan.launches:
                    binary = launch.binary
                    assert binary.format == ("cubin" if own else "ptx")
                    assert binary.capability == (capability if own else (8, 0))
                    assert binary.dtype in (dtype, None)


SAMPLE = [
    pytest.param(kernel, capability, dtype, format, id=f"{kernel}-{ahead.text(capability)}-{dtype}-{format}")
    for kernel, capability, dtype, format in [
        ("ebca_forward", (8, 0), "bfloat16", "cubin"),
        ("ebca_forward", (8, 0), "float16", "ptx"),
        ("ebca_forward", (8, 9), "float16", "cubin"),
        ("ebca_forward", (9, 0), "float16", "cubin"),
        ("ebca_forward", (12, 0), "bfloat16", "cubin"),
        ("ebca_combine", (12, 1), "float16", "cubin"),
        ("ebca_energies", (8, 6), None, "cubin"),
    ]
]


@pytest.mark.parametrize("kernel, capability, dtype, format", SAMPLE)
def test_compiling_again_reproduces_the_committed_binary(
    kernels: KernelSet, kernel: str, capability: tuple[int, int], dtype: str | None, format: str
) -> None:
    """The largest binary of each kind; byte for byte if this machine has the same compiler."""
    pytest.importorskip("triton", reason="compiling needs Triton; pip install ebca[kernels]")
    tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
    *_, spec = (s for s in ahead.specs(capability, tuning) if (s.kernel, s.dtype) == (kernel, dtype))
    if kernel == "ebca_forward":
        spec = replace(spec, constants={**spec.constants, "UPDATE": 1, "SINGLE": 0})
    made = ahead.compile_spec(replace(spec, format=format))
    (committed,) = (b for b in kernels.binaries if is_same(b, made.binary()))
    assert [(a.name, a.type, a.offset) for a in kernels.arguments[kernel]] == [
        (a["name"], a["type"], a["offset"]) for a in made.arguments
    ]
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    if manifest["compiler"] == ahead.compiler_versions():
        assert made.image == kernels.image(committed)
        assert made.binary(committed.offset, committed.size) == committed


def is_same(a: Binary, b: Binary) -> bool:
    names = ("kernel", "format", "capability", "dtype", "head_dims", "positions_from", "constants")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def test_a_binary_that_spills_is_refused() -> None:
    pytest.importorskip("triton", reason="compiling needs Triton; pip install ebca[kernels]")
    block = {"positions_from": 1, "BLOCK_N": 128, "num_warps": 4, "num_stages": 2}
    spec = ahead.forward_spec(ahead.WIDTHS[-1], "float16", (8, 0), block, update=True, single=False)
    with pytest.raises(BackendError, match=r"head_dim up to 160.*(spills|shared memory)"):
        ahead.compile_spec(spec)


def test_an_assembler_too_old_for_the_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assemblers of Triton 3.5 to 3.7 do not know 12.1."""
    pytest.importorskip("triton", reason="compiling needs Triton; pip install ebca[kernels]")
    assembler = tmp_path / "ptxas"
    assembler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "Cuda compilation tools, release 12.9, V12.9.86"; exit 0;; esac\n'
        "echo \"ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'\" >&2; exit 1\n"
    )
    assembler.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(assembler))
    constants = {"BLOCK_T": 128, "BLOCK_I": 16, "BLOCK_H": 8}
    spec = ahead.Spec("ebca_energies", (12, 1), None, (4, 160), 4, constants)
    with pytest.raises(BackendError, match=r"ebca_energies for 12\.1.*Value 'sm_121a' is not.*3\.8 or newer"):
        ahead.compile_spec(spec)


def test_an_unknown_compute_capability_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert ahead.main(["--capabilities", "7.5"]) == 1
    assert "'7.5'; choose among 8.0, 8.6" in capsys.readouterr().err


# ---- the choice


def test_a_gpu_that_is_too_old_is_named(kernels: KernelSet) -> None:
    with pytest.raises(BackendError, match=r"compute capability 7\.5; .* 8\.0, 8\.6, .* PTX for any GPU from 8\.0"):
        launches(kernels, "update", (7, 5), "float16", OpShape(2, 64, 1, 77, 8, 40))


@pytest.mark.parametrize("head_dim", [2, 20, 42, 168])
def test_a_head_size_without_kernel_is_named(kernels: KernelSet, head_dim: int) -> None:
    with pytest.raises(ParameterError, match=rf"head_dim {head_dim};.*24 to 64 in steps of 8"):
        launches(kernels, "update", (8, 9), "float16", OpShape(2, 64, 1, 77, 8, head_dim))


def test_a_dtype_without_kernel_is_named(kernels: KernelSet) -> None:
    with pytest.raises(ParameterError, match="'float32'; use float16 or bfloat16"):
        launches(kernels, "update", (8, 9), "float32", OpShape(2, 64, 1, 77, 8, 40))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 64, 1, 77, 8, 40), "batch is 0"), ((1, 2**24, 1, 77, 8, 40), "2\\^31"), ((70000, 1, 1, 1, 1, 8), "65535")],
)
def test_impossible_sizes_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        OpShape(*sizes)


def test_large_images_use_the_large_tile(kernels: KernelSet) -> None:
    def block(positions: int) -> int:
        plan = launches(kernels, "update", (8, 9), "float16", OpShape(2, positions, 1, 77, 8, 40))
        return plan.launches[0].binary.constants["BLOCK_N"]

    assert (block(4095), block(4096)) == (64, 128)


def test_damaged_or_missing_binaries_are_named(tmp_path: Path, kernels: KernelSet) -> None:
    with pytest.raises(BackendError, match=r"manifest\.json: the GPU kernels cannot be read"):
        KernelSet.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "ebca-kernels", "version": 2}', encoding="utf-8")
    with pytest.raises(BackendError, match="install ebca again"):
        KernelSet.load(tmp_path)
    for path in FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    copy = KernelSet.load(tmp_path)
    first = next(b for b in copy.binaries if b.capability == (8, 9))
    content = bytearray((tmp_path / "sm_89.bin").read_bytes())
    content[first.offset + 100] ^= 1
    (tmp_path / "sm_89.bin").write_bytes(content)
    with pytest.raises(BackendError, match=r"sm_89\.bin is damaged"):
        copy.image(first)


# ---- launches


def addresses_of(variant: str) -> dict[str, int]:
    tensors = signature(variant, 1, 1)
    return {name: 0x7F00_0000_0000 + 4096 * i for i, name in enumerate((*tensors.inputs, *tensors.outputs))}


SHAPE = OpShape(batch=2, positions=1000, contexts=3, tokens=77, heads=8, head_dim=40)


def test_a_bound_call_launches_what_the_kernels_expect(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    pointers = addresses_of("energies")
    scratch = 0x1000
    op = EnergyAttention(KernelLibrary(driver, kernels)).bind("energies", "float16", SHAPE, pointers, scratch)
    op(0xABC)
    forward, combine, energies = driver.launched
    assert [one["kernel"] for one in driver.launched] == ["ebca_forward", "ebca_combine", "ebca_energies"]
    assert {one["stream"] for one in driver.launched} == {0xABC}
    tiles = -(-1000 // 64)
    assert forward["grid"] == (tiles, 8, 2) and combine["grid"] == (5, 8, 6) and energies["grid"] == (6, 1, 1)
    assert forward["block"] == (128, 1, 1) and forward["shared"] > 0
    assert {n: forward[n] for n in ("N", "T", "S", "d", "mask_positions")} == {
        "N": 1000,
        "T": 77,
        "S": 3,
        "d": 40,
        "mask_positions": 1000,
    }
    assert forward["q_batch"] == 1000 * 320 and forward["k_batch"] == 3 * 77 * 320 and forward["k_context"] == 77 * 320
    assert forward["q_position"] == forward["k_token"] == forward["out_position"] == 320
    assert forward["mask_batch"] == 3000 and forward["mask_context"] == 1000
    assert forward["scale"] == np.float32(np.log2(np.e) / np.sqrt(40))
    for name in ("q", "k", "v", "weights", "mask", "out"):
        assert forward[name + "_ptr"] == pointers[name]
    for name in ("gamma_attn", "gamma_norm", "norm_factor", "tie", "g"):
        assert combine[name + "_ptr"] == pointers[name]
    assert (energies["energy_attn_ptr"], energies["energy_norm_ptr"]) == (
        pointers["energy_attn"],
        pointers["energy_norm"],
    )
    assert combine["tiles"] == energies["tiles"] == tiles
    for one in driver.launched:
        assert one["global_scratch"] == one["profile_scratch"] == 0
        assert one["column_ptr"] == forward["column_ptr"] and one["norm2_ptr"] == forward["norm2_ptr"]
    assert forward["partial_ptr"] == combine["partial_ptr"] == scratch


def test_scratch_parts_do_not_overlap(kernels: KernelSet) -> None:
    plan = launches(kernels, "update", (8, 9), "float16", SHAPE)
    tiles, groups = -(-1000 // 64), 2 * 3 * 8
    needed = {"partial": groups * tiles * 77 * 40 * 2, "column": groups * tiles * 2 * 77 * 4, "norm2": groups * 77 * 4}
    ends = [*sorted(plan.scratch.values()), plan.scratch_bytes]
    for name, offset in plan.scratch.items():
        assert offset % 16 == 0 and offset + needed[name] <= ends[ends.index(offset) + 1]
    assert launches(kernels, "attention", (8, 9), "float16", SHAPE).scratch_bytes == 0


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scratch_for_the_largest_call_is_enough_for_smaller_ones(
    kernels: KernelSet, variant: str, capability: tuple[int, int]
) -> None:
    largest = replace(SHAPE, positions=4500)
    enough = scratch_bytes(kernels, variant, capability, "float16", largest)
    for positions in (1, 64, 65, 1000, 4032, 4095, 4096, 4500):
        for contexts in (1, 2, 3):
            for batch in (1, 2):
                smaller = replace(SHAPE, batch=batch, positions=positions, contexts=contexts)
                assert launches(kernels, variant, capability, "float16", smaller).scratch_bytes <= enough
    if variant == "update":
        # The case that the largest call alone does not cover.
        assert launches(kernels, variant, capability, "float16", largest).scratch_bytes < enough


def test_the_attention_variant_is_one_launch_without_scratch(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    EnergyAttention(KernelLibrary(driver, kernels)).bind("attention", "bfloat16", SHAPE, addresses_of("attention"))(1)
    (forward,) = driver.launched
    assert forward["partial_ptr"] == forward["mask_ptr"] == forward["mask_positions"] == 0


def test_one_context_uses_the_form_without_weights_and_mask(kernels: KernelSet) -> None:
    one = replace(SHAPE, contexts=1)
    for variant, single in (("attention", 1), ("update", 1), ("update_masked", 0), ("energies", 0)):
        assert launches(kernels, variant, (8, 9), "float16", one).launches[0].binary.constants["SINGLE"] == single
        assert launches(kernels, variant, (8, 9), "float16", SHAPE).launches[0].binary.constants["SINGLE"] == 0


def test_a_binary_is_loaded_once(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    library = EnergyAttention(KernelLibrary(driver, kernels))
    for positions in (1000, 500):
        library.bind("update", "float16", replace(SHAPE, positions=positions), addresses_of("update"), 16)(1)
    assert driver.loaded == ["ebca_forward", "ebca_combine"]


class StreamObject:
    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, 77)


def test_streams_of_other_libraries_are_accepted(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    EnergyAttention(KernelLibrary(driver, kernels)).bind("attention", "float16", SHAPE, addresses_of("attention"))(
        StreamObject()
    )
    assert driver.launched[0]["stream"] == 77


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": None}, "no device address for k"),
        ({"q": 0x1008}, "'q' is at address 0x1008"),
        ({"tie": 0}, "'tie' is at address 0x0"),
        ({"scratch": 0}, "scratch is at address 0x0"),
        ({"scratch": 8}, "in steps of 16"),
    ],
)
def test_invalid_addresses_are_refused(kernels: KernelSet, change: Mapping[str, Any], message: str) -> None:
    values = {**addresses_of("update"), "scratch": 16, **change}
    scratch = values.pop("scratch")
    pointers = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(ParameterError, match=message):
        EnergyAttention(KernelLibrary(FakeLauncher(kernels), kernels)).bind(
            "update", "float16", SHAPE, pointers, scratch
        )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, high) for high in (4, 5000, 4, 200, 20)], st.sampled_from([4, 40, 64, 80, 160])),
    variant=st.sampled_from(VARIANTS),
)
def test_scalars_and_packed_bytes_agree(kernels: KernelSet, sizes: tuple[int, ...], variant: str) -> None:
    plan = launches(kernels, variant, (9, 0), "float16", OpShape(*sizes))
    pointers = {name: 4096 * (i + 1) for i, name in enumerate((*plan.tensors, *plan.scratch))}
    for launch in plan.launches:
        packed = launch.pack(pointers)
        for argument, scalar in zip(launch.arguments, launch.scalars(pointers), strict=True):
            assert packed[argument.offset : argument.offset + scalar.nbytes] == scalar.tobytes(), argument


def test_cuda_core_passes_the_scalars_unchanged(kernels: KernelSet) -> None:
    handler = pytest.importorskip("cuda.core._kernel_arg_handler", reason="needs cuda-core; pip install ebca[gpu]")
    launch = launches(kernels, "attention", (8, 9), "float16", SHAPE).launches[0]
    pointers = addresses_of("attention")
    scalars = launch.scalars(pointers)
    holder = handler.ParamHolder(scalars)
    addresses = (ctypes.c_void_p * len(scalars)).from_address(holder.ptr)
    packed = launch.pack(pointers)
    for argument, scalar, at in zip(launch.arguments, scalars, addresses, strict=True):
        assert ctypes.string_at(at, scalar.nbytes) == packed[argument.offset : argument.offset + scalar.nbytes]


# ---- the real driver interface, on a libcuda made for the test

STUB = r"""
#include <stdio.h>
#include <stdint.h>
#include <string.h>
static int init(unsigned f) { return 0; }
static int device(int *d, int ordinal) { *d = ordinal; return 0; }
static int attribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 9 : 0; return 0; }
static int retain(void **c, int d) { *c = (void *)0x77; return 0; }
static int release(int d) { puts("release"); return 0; }
static int push(void *c) { printf("push %p\n", c); return 0; }
static int pop(void **c) { puts("pop"); return 0; }
static int load(void **l, const char *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m) {
  printf("load %.3s %u %u\n", code + 1, n, m); *l = (void *)0x12; return 0; }
static int unload(void *l) { printf("unload %p\n", l); return 0; }
static int kernel(void **k, void *l, const char *n) {
  printf("kernel %s of %p\n", n, l); *k = (void *)0x34; return strcmp(n, "absent") ? 0 : 500; }
static int function(void **f, void *k) { printf("preload %p\n", k); *f = (void *)0x56; return 0; }
static int launch(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void *stream, void **p, void **extra) {
  printf("launch %p (%u, %u, %u) (%u, %u, %u) %u %p %p", f, gx, gy, gz, bx, by, bz, shared, stream, (void *)extra);
  printf(" %lx %d %d\n", *(long *)p[0], *(int *)p[9], *(int *)p[12]); return 0; }
static int text(int e, const char **s) { *s = "named symbol not found"; return 0; }
static int other() { return 801; }
static struct { const char *name; void *at; } table[] = {
  {"cuInit", init}, {"cuDeviceGet", device}, {"cuDeviceGetAttribute", attribute}, {"cuDevicePrimaryCtxRetain", retain},
  {"cuDevicePrimaryCtxRelease", release}, {"cuCtxPushCurrent", push}, {"cuCtxPopCurrent", pop},
  {"cuLibraryLoadData", load}, {"cuLibraryUnload", unload}, {"cuLibraryGetKernel", kernel},
  {"cuKernelGetFunction", function}, {"cuLaunchKernel", launch}, {"cuGetErrorString", text}};
int cuGetProcAddress_v2(const char *name, void **at, int version, uint64_t flags, int *status) {
  *at = (void *)other;
  for (unsigned i = 0; i < sizeof table / sizeof *table; i++) if (!strcmp(name, table[i].name)) *at = table[i].at;
  if (status) *status = 0;
  return 0; }
int cuGetProcAddress(const char *n, void **a, int v, uint64_t f) { return cuGetProcAddress_v2(n, a, v, f, 0); }
"""

PROGRAM = """
import sys
from ebca.errors import BackendError
from ebca.plugins.kernels.binaries import OpShape
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary
with CudaLauncher() as launcher:
    library = EnergyAttention(KernelLibrary(launcher))
    pointers = {name: 4096 * (i + 1) for i, name in enumerate(("q", "k", "v", "weights", "out"))}
    library.bind("attention", "float16", OpShape(2, 1000, 1, 77, 8, 40), pointers)(0xabc)
    try:
        launcher.load(b"?ELF", "absent")
    except BackendError as error:
        print(error, flush=True)
launcher.close()
assert not {"torch", "triton"} & set(sys.modules)
"""


def test_the_driver_is_called_according_to_its_interface(tmp_path: Path, kernels: KernelSet) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings; pip install ebca[gpu]")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    (tmp_path / "stub.c").write_text(STUB, encoding="utf-8")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, tmp_path / "stub.c"], check=True)
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    binary = launches(kernels, "attention", (8, 9), "float16", OpShape(2, 1000, 1, 77, 8, 40)).launches[0].binary
    expected = [
        *["push 0x77", "load ELF 0 0", "kernel ebca_forward of 0x12", "preload 0x34", "pop"],
        f"launch 0x34 (16, 8, 2) (128, 1, 1) {binary.shared_bytes} 0xabc (nil) 1000 1000 40",
        *["push 0x77", "load ELF 0 0", "kernel absent of 0x12", "pop"],
        *["unload 0x12", "unload 0x12", "release"],
    ]
    printed = done.stdout.splitlines()
    (refusal,) = (line for line in printed if line.startswith("cuLibraryGetKernel"))
    assert "named symbol not found" in refusal
    assert [line for line in printed if line != refusal] == expected


def test_without_a_driver_there_is_one_clear_line() -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings; pip install ebca[gpu]")
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(BackendError, match=r"no NVIDIA driver on this machine .*; install one, or run on the CPU$"):
        CudaLauncher()


def test_launching_imports_neither_pytorch_nor_triton() -> None:
    program = (
        "import sys; from ebca.plugins.kernels.launch import KernelLibrary; "
        "from ebca.plugins.kernels.binaries import KernelSet; KernelSet.load(); "
        "import ebca.plugins.energy_attention.tensorrt_plugin; "
        "sys.exit(bool({'torch', 'triton', 'onnx', 'tensorrt'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=env)
