"""The compiled GPU kernels: the committed set, compiling it again, and the choice of a binary."""

import hashlib
import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from ebca.errors import BackendError, ParameterError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS
from ebca.plugins.energy_attention.launches import OpShape, launches
from ebca.plugins.kernels.binaries import FOLDER, Binary, KernelSet

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


# ---- the metadata of a cubin


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
    assert checked == 43 * 6


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
    assert checked == 43


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
@pytest.mark.parametrize("variant", (*VARIANTS, *GUIDED_VARIANTS))
def test_every_layer_of_every_model_has_kernels(kernels: KernelSet, variant: str, capability: tuple[int, int]) -> None:
    own = capability not in ((10, 0), (8, 7))
    for heads, head_dim, positions in LAYERS:
        for dtype in ("float16", "bfloat16"):
            for contexts in (1, 3):
                planned = launches(
                    kernels, variant, capability, dtype, OpShape(2, positions, contexts, 77, heads, head_dim, 3)
                )
                for launch in planned.launches:
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
        ("ebca_forward_guided", (8, 9), "float16", "cubin"),
        ("ebca_maps", (9, 0), None, "cubin"),
        ("ebca_exclude", (12, 0), None, "cubin"),
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
    block = {"positions_from": 1, "BLOCK_N": 64, "T1": 64, "ROWS": 16, "BLOCK_P": 64, "num_warps": 4, "num_stages": 1}
    spec = ahead.forward_spec(ahead.WIDTHS[-1], "float16", (8, 0), block, single=False)
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
    constants = {"BLOCK_T": 128, "SPLITS": 16}
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


def test_larger_images_have_more_ranges_of_positions(kernels: KernelSet) -> None:
    def splits(positions: int) -> object:
        planned = launches(kernels, "update", (8, 9), "float16", OpShape(2, positions, 1, 77, 8, 40))
        return planned.launches[1].values["splits"]

    assert [splits(n) for n in (64, 256, 511, 512, 1024, 2047, 2048, 4096, 9216)] == [1, 4, 4, 8, 8, 8, 16, 16, 16]


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
