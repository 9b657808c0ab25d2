"""Launches of the GPU kernels without a GPU: arguments, scratch memory, streams, and the interface of the driver."""

import ctypes
import os
import shutil
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
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape, launches, scratch_bytes
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary


@pytest.fixture(scope="module")
def kernels() -> KernelSet:
    return KernelSet.load()


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
    # Per head: 3 contexts x 8 ranges x 5 blocks of 16 tokens, 16 tiles, and an eighth of 3 x 20 blocks for the norms.
    assert forward["grid"] == (3 * 8 * 5 + 16 + 8, 8, 2)
    assert combine["grid"] == (10, 8, 6) and energies["grid"] == (6, 1, 1)
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
    assert forward["splits"] == combine["splits"] == energies["splits"] == 8 and forward["span"] == 128
    for one in driver.launched:
        assert one["global_scratch"] == one["profile_scratch"] == 0
        assert one["column_ptr"] == forward["column_ptr"] and one["norm2_ptr"] == forward["norm2_ptr"]
    assert forward["partial_ptr"] == combine["partial_ptr"] == scratch


def test_a_guided_call_launches_the_guided_kernels(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    pointers = addresses_of("energies_guided")
    shape = replace(SHAPE, groups=3)
    call = EnergyAttention(KernelLibrary(driver, kernels)).bind("energies_guided", "float16", shape, pointers, 0x1000)
    call(0xABC)
    names = ["ebca_forward_guided", "ebca_combine", "ebca_energies", "ebca_maps"]
    assert [one["kernel"] for one in driver.launched] == names
    forward, combine, _, maps = driver.launched
    # As without guidance, 2 heads' maps of 3 x 1000 values beside it.
    assert forward["grid"] == (3 * 8 * 5 + 16 + 8, 8, 2) and combine["grid"] == (10, 8, 6)
    assert maps["grid"] == (12, 1, 2) and (maps["heads"], maps["cells"]) == (8, 3000)
    assert (forward["N"], forward["groups"], forward["mask_positions"]) == (1000, 3, 1000)
    for name in ("q", "k", "v", "weights", "mask", "bias", "token_groups", "out"):
        assert forward[name + "_ptr"] == pointers[name]
    planned = launches(kernels, "energies_guided", (8, 9), "float16", shape)
    assert forward["head_maps_ptr"] == maps["head_maps_ptr"] == 0x1000 + planned.scratch["head_maps"]
    assert planned.scratch_bytes - planned.scratch["head_maps"] >= 2 * 8 * 3 * 1000 * 4
    assert maps["maps_ptr"] == pointers["maps"] and combine["g_ptr"] == pointers["g"]

    driver.launched.clear()
    EnergyAttention(KernelLibrary(driver, kernels)).bind("attention_guided", "float16", shape, pointers, 0x1000)(1)
    forward, maps = driver.launched
    assert (forward["grid"], forward["splits"], forward["partial_ptr"]) == ((16, 8, 2), 0, 0)
    assert forward["head_maps_ptr"] == maps["head_maps_ptr"] == 0x1000


@pytest.mark.parametrize("groups", [0, 17])
def test_a_number_of_groups_without_kernel_is_named(kernels: KernelSet, groups: int) -> None:
    with pytest.raises(ParameterError, match=f"'update_guided' is given {groups} token groups; .* take 1 to 16"):
        launches(kernels, "update_guided", (8, 9), "float16", replace(SHAPE, groups=groups))


def test_the_number_of_groups_changes_no_other_variant(kernels: KernelSet) -> None:
    for variant in VARIANTS:
        with_groups = launches(kernels, variant, (8, 9), "float16", replace(SHAPE, groups=3))
        without = launches(kernels, variant, (8, 9), "float16", SHAPE)
        assert with_groups.launches == without.launches and with_groups.scratch == without.scratch


def test_scratch_parts_do_not_overlap(kernels: KernelSet) -> None:
    planned = launches(kernels, "update", (8, 9), "float16", SHAPE)
    splits, groups = 8, 2 * 3 * 8
    needed = {"partial": groups * splits * 77 * 40 * 2, "column": groups * splits * 2 * 77 * 4, "norm2": 6 * 77 * 4}
    ends = [*sorted(planned.scratch.values()), planned.scratch_bytes]
    for name, offset in planned.scratch.items():
        assert offset % 16 == 0 and offset + needed[name] <= ends[ends.index(offset) + 1]
    assert launches(kernels, "attention", (8, 9), "float16", SHAPE).scratch_bytes == 0


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("variant", (*VARIANTS, *GUIDED_VARIANTS))
def test_scratch_for_the_largest_call_is_enough_for_smaller_ones(
    kernels: KernelSet, variant: str, capability: tuple[int, int]
) -> None:
    largest = replace(SHAPE, positions=4700, groups=2)
    enough = scratch_bytes(kernels, variant, capability, "float16", largest)
    for positions in (1, 64, 65, 256, 511, 512, 1000, 2047, 2048, 4096, 4500, 4700):
        for contexts in (1, 2, 3):
            for batch in (1, 2):
                smaller = replace(largest, batch=batch, positions=positions, contexts=contexts)
                assert launches(kernels, variant, capability, "float16", smaller).scratch_bytes <= enough
    if variant == "update":
        # The case that the largest call alone does not cover: it has 15 ranges of 320 positions, 4096 has 16 of 256.
        assert launches(kernels, variant, capability, "float16", largest).scratch_bytes < enough


def test_the_attention_variant_is_one_launch_without_scratch(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    EnergyAttention(KernelLibrary(driver, kernels)).bind("attention", "bfloat16", SHAPE, addresses_of("attention"))(1)
    (forward,) = driver.launched
    assert forward["partial_ptr"] == forward["mask_ptr"] == forward["mask_positions"] == forward["splits"] == 0
    assert forward["grid"] == (16, 8, 2)


def test_one_context_uses_the_form_without_weights_and_mask(kernels: KernelSet) -> None:
    one = replace(SHAPE, contexts=1)
    for variant, single in (("attention", 1), ("update", 1), ("update_masked", 0), ("energies", 0)):
        assert launches(kernels, variant, (8, 9), "float16", one).launches[0].binary.constants["SINGLE"] == single
        assert launches(kernels, variant, (8, 9), "float16", SHAPE).launches[0].binary.constants["SINGLE"] == 0


@pytest.mark.parametrize("capability", [(8, 9), (9, 0)])
@pytest.mark.parametrize("tokens", [1, 47, 48, 64, 77, 112, 154])
def test_every_token_and_position_has_its_programs(
    kernels: KernelSet, tokens: int, capability: tuple[int, int]
) -> None:
    """The blocks that the kernel's text names, counted one by one."""
    for positions in (1, 64, 300, 576, 1000, 2304, 4099):
        for contexts in (1, 2):
            shape = replace(SHAPE, positions=positions, contexts=contexts, tokens=tokens)
            forward = launches(kernels, "update", capability, "float16", shape).launches[0]
            values, constants = forward.values, forward.binary.constants
            splits, span, rows, tail = values["splits"], values["span"], constants["ROWS"], constants["TAIL"]
            assert isinstance(splits, int) and isinstance(span, int)
            assert (splits - 1) * span < positions <= splits * span and span % constants["BLOCK_P"] == 0
            blocks, left = 0, tokens
            while left > 0:
                # A wide block, unless what is left is shorter by a narrow one or more.
                left -= rows if left > rows - tail else tail
                blocks += 1
            norms = contexts * -(-tokens // constants["NORM_T"])
            places = contexts * splits * blocks - (-positions // constants["BLOCK_N"]) - (-norms // shape.heads)
            assert forward.grid == (places, shape.heads, shape.batch)


def test_a_binary_is_loaded_once(kernels: KernelSet) -> None:
    driver = FakeLauncher(kernels)
    library = EnergyAttention(KernelLibrary(driver, kernels))
    for positions in (1000, 600):
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
        ({"scratch": 8}, "the kernels need multiples of 16"),
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
    variant=st.sampled_from((*VARIANTS, *GUIDED_VARIANTS)),
)
def test_scalars_and_packed_bytes_agree(kernels: KernelSet, sizes: tuple[int, ...], variant: str) -> None:
    planned = launches(kernels, variant, (9, 0), "float16", OpShape(*sizes, groups=2))
    pointers = {name: 4096 * (i + 1) for i, name in enumerate((*planned.tensors, *planned.scratch))}
    for launch in planned.launches:
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


# ---- the real driver interface, with a libcuda made for the test

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
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
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
