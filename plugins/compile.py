"""Compile the GPU kernels ahead of time, on any machine: `make kernels`. Needs Triton (`ebca[kernels]`), no GPU.

    python -m ebca.plugins.compile                    the whole set, into the package
    python -m ebca.plugins.compile --output DIR --capabilities 8.9,9.0

Writes manifest.json and one pack of zlib-compressed binaries per compute capability. A binary is refused if it spills,
or needs more shared memory than every GPU offers by default.
"""

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final

from ebca.errors import BackendError, EbcaError
from ebca.plugins.exclusive_attention import TENSORS
from ebca.plugins.exclusive_attention import launches as exclusion
from ebca.plugins.kernels.binaries import DTYPES, FOLDER, FORMAT, Binary, Capability, pack_key
from ebca.plugins.sampling import EMBEDDINGS, STATE, launches

CAPABILITIES: Final[tuple[Capability, ...]] = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1))
PTX_CAPABILITY: Final[Capability] = (8, 0)
PTX_ISA: Final = 80
"""PTX ISA 8.0, which drivers since CUDA 12.0 accept."""

MAX_STACK_BYTES: Final = 64
MAX_SHARED_BYTES: Final = 48 * 1024
"""Shared memory that every GPU gives a block without a function attribute."""

SOURCES: Final = (
    "ebca.plugins.energy_attention.kernels",
    "ebca.plugins.energy_attention.guided_kernels",
    "ebca.plugins.sampling.kernels",
    "ebca.plugins.exclusive_attention.kernels",
)
"""Modules with kernels."""

TUNING: Final = Path(__file__).parent / "energy_attention" / "tuning.json"


@dataclass(frozen=True)
class Width:
    """A class of head sizes that one binary serves, in two blocks of channels D1 + D2 (powers of two, wide enough)."""

    smallest: int
    largest: int
    unit: int
    D1: int
    D2: int


# Head size 40 takes fewer instructions in 64 channels than in 32 + 16, where warps repeat work.
WIDTHS: Final = (Width(4, 16, 4, 16, 0), Width(24, 64, 8, 64, 0), Width(72, 80, 8, 64, 16), Width(88, 160, 8, 128, 32))

SPLITS: Final = ((1, 4, 16), (512, 8, 8), (2048, 16, 8))
"""Of ebca_combine: from so many positions on, at most so many ranges, and tokens per program."""

MAX_GROUPS: Final = 16
"""Token groups that the guided kernels can serve, the smallest side of a product on a matrix unit."""

_SMALL_BLOCKS: Final = {"T2": 16, "TAIL": 16, "NORM_T": 4, "NORM_C": 512}


@dataclass(frozen=True)
class Spec:
    """One binary to compile. `unit` must divide head_dim and all strides, and 16 bytes every address."""

    kernel: str
    capability: Capability
    dtype: str | None
    head_dims: tuple[int, int]
    unit: int
    constants: Mapping[str, int]
    positions_from: int = 1
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int = 255
    format: str = "cubin"


@dataclass(frozen=True)
class Compiled:
    """A binary and the compiler's report on it."""

    spec: Spec
    image: bytes = field(repr=False)
    arguments: list[dict[str, Any]] = field(repr=False)
    shared_bytes: int
    registers: int
    stack_bytes: int

    def binary(self, offset: int = 0, size: int = 0) -> Binary:
        """The entry for the manifest."""
        named = {name: getattr(self, name) for name in ("shared_bytes", "registers", "stack_bytes")}
        common = Binary.__dataclass_fields__.keys() & Spec.__dataclass_fields__.keys()
        return Binary(**{name: getattr(self.spec, name) for name in common}, **named, offset=offset, size=size)


def forward_spec(width: Width, dtype: str, capability: Capability, block: Mapping[str, Any], *, single: bool) -> Spec:
    """ebca_forward with the block sizes of one entry of tuning.json; `several` has those for SINGLE 0 that differ."""
    block = block if single else {**block, **block.get("several", {})}
    form = {"EAGER": block.get("EAGER", 0), "D1": width.D1, "D2": width.D2, "SINGLE": int(single)}
    return _forward_spec("ebca_forward", width, dtype, capability, block, form)


def guided_spec(width: Width, dtype: str, capability: Capability, block: Mapping[str, Any]) -> Spec:
    """ebca_forward_guided with the sizes of `several` and, of those, `guided` for what differs."""
    block = {**block, **block.get("several", {}), **block.get("guided", {})}
    form = {"D1": width.D1, "D2": width.D2, "GROUPS": MAX_GROUPS}
    return _forward_spec("ebca_forward_guided", width, dtype, capability, block, form)


def _forward_spec(
    kernel: str, width: Width, dtype: str, capability: Capability, block: Mapping[str, Any], form: Mapping[str, int]
) -> Spec:
    return Spec(
        kernel=kernel,
        capability=capability,
        dtype=dtype,
        head_dims=(width.smallest, width.largest),
        unit=width.unit,
        positions_from=block["positions_from"],
        constants={
            **{name: block[name] for name in ("BLOCK_N", "T1", "ROWS", "BLOCK_P")},
            **_SMALL_BLOCKS,
            **form,
        },
        num_warps=block["num_warps"],
        num_stages=block["num_stages"],
        max_registers=block.get("max_registers", 255),
    )


def specs(capability: Capability, tuning: Mapping[str, Any]) -> Iterator[Spec]:
    """Every binary of the shipped set for one compute capability."""
    blocks = {**tuning["default"], **tuning.get(text(capability), {})}
    small, others = WIDTHS[0], WIDTHS[1:]
    for dtype in DTYPES:
        for width in WIDTHS:
            for block, single in product(blocks[str(width.largest)], (True, False)):
                yield forward_spec(width, dtype, capability, block, single=single)
            for block in blocks[str(width.largest)]:
                yield guided_spec(width, dtype, capability, block)
        for head_dims, unit, channels in (
            ((small.smallest, small.largest), small.unit, 16),
            ((others[0].smallest, others[-1].largest), others[0].unit, 64),
        ):
            for positions_from, splits, tokens in SPLITS:
                constants = {"BLOCK_T": tokens, "BLOCK_D": channels, "SPLITS": splits, "BLOCK_L": 128}
                yield Spec("ebca_combine", capability, dtype, head_dims, unit, constants, positions_from)
    every = (WIDTHS[0].smallest, WIDTHS[-1].largest)
    constants = {"BLOCK_T": 128, "SPLITS": max(splits for _, splits, _ in SPLITS)}
    yield Spec("ebca_energies", capability, None, every, WIDTHS[0].unit, constants)
    yield Spec("ebca_maps", capability, None, every, 1, {"BLOCK": 256, "HEADS": 8})
    # The kernels between two evaluations do not depend on heads.
    for kernel in ("ebca_begin", "ebca_end", "ebca_embed"):
        yield Spec(kernel, capability, None, every, 1, {"BLOCK": launches.BLOCK})
    yield Spec("ebca_advance", capability, None, every, 1, {}, num_warps=1)
    yield Spec("ebca_exclude", capability, None, every, 1, {"BLOCK": exclusion.BLOCK})


def text(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


# ---- one binary

_TRITON_DTYPES: Final = {"float16": "fp16", "bfloat16": "bf16", None: "fp32"}
_STORAGE: Final = ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "partial_ptr")
_DTYPES: Final = {
    "token_groups": "int32",
    **{name: tensor.dtype for name, tensor in {**STATE, **EMBEDDINGS}.items()},
    **{name: tensor.dtype for name, tensor in TENSORS.items()},
}
_OTHER_POINTERS: Final = {
    f"{name}_ptr": {"int32": "*i32", "float64": "*fp64"}[dtype] for name, dtype in _DTYPES.items() if dtype != "float32"
}
_UNIT_STRIDES: Final = ("d", "q_batch", "q_position", "k_batch", "k_context", "k_token", "out_batch", "out_position")
_MANIFEST_TYPES: Final = {"i32": ("int32", 4), "fp32": ("float32", 4)}


def compile_spec(spec: Spec) -> Compiled:
    """Compile one binary.

    Raises BackendError if Triton is missing or needs scratch memory of its own, or if the result exceeds
    MAX_STACK_BYTES or MAX_SHARED_BYTES.
    """
    if find_spec("triton") is None:
        raise BackendError("compiling the GPU kernels needs Triton", 'run `pip install "ebca[kernels]"`')
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.errors import PTXASError

    function = _function(spec.kernel)
    storage = "*" + _TRITON_DTYPES[spec.dtype]
    types = {name: _triton_type(name, storage) for name in function.arg_names if name not in spec.constants}
    promises = {
        name: 16 if name.endswith("_ptr") else spec.unit
        for name in types
        if name.endswith("_ptr") or name in _UNIT_STRIDES
    }
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in function.arg_names},
        constexprs=dict(spec.constants),
        attrs={(function.arg_names.index(n),): [["tt.divisibility", by]] for n, by in promises.items()},
    )
    # Set contraction to fused multiply-adds explicitly: Triton's default changes between versions.
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": True}
    if spec.max_registers < 255:
        options["maxnreg"] = spec.max_registers
    if spec.format == "ptx":
        options["ptx_version"] = PTX_ISA
    major, minor = spec.capability
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope(), knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.cache.dir = cache
        # Line tables make a binary three times as large.
        knobs.compilation.disable_line_info = True
        # One assembler for all: the one of CUDA 12, whose binaries load with drivers of CUDA 12 and 13.
        knobs.nvidia.ptxas_blackwell = knobs.nvidia.ptxas.path
        try:
            made = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=options)
        except PTXASError as error:
            said = re.search(r"ptxas (?:fatal|error)\s*: (.+)", str(error))
            reason = (
                f"{said[1] if said else error}; this is Triton {triton.__version__}, 3.8 or newer compiles them all"
            )
            raise BackendError(f"{_where(spec)}: {reason}") from None
        registers, stack_bytes = _usage(made.asm["cubin"], knobs.nvidia.cuobjdump.path)
    metadata = made.metadata
    result = Compiled(
        spec=spec,
        image=made.asm["cubin"] if spec.format == "cubin" else _portable(made.asm["ptx"]),
        arguments=_arguments(types),
        shared_bytes=metadata.shared,
        registers=registers,
        stack_bytes=stack_bytes,
    )
    _check(result, metadata)
    return result


def _function(kernel: str) -> Any:
    return next(getattr(m, kernel) for m in map(import_module, SOURCES) if hasattr(m, kernel))


def _triton_type(name: str, storage: str) -> str:
    if name.endswith("_ptr"):
        return storage if name in _STORAGE else _OTHER_POINTERS.get(name, "*fp32")
    return "fp32" if name == "scale" else "i32"


def _arguments(types: Mapping[str, str]) -> list[dict[str, Any]]:
    """Parameters in order, with their offsets. Triton appends two scratch pointers, which are null here."""
    result, end = [], 0
    for name, kind in {**types, "global_scratch": "*i8", "profile_scratch": "*i8"}.items():
        manifest_type, size = ("pointer", 8) if kind.startswith("*") else _MANIFEST_TYPES[kind]
        offset = -(-end // size) * size
        result.append({"name": name, "type": manifest_type, "offset": offset})
        end = offset + size
    return result


def _usage(cubin: bytes, cuobjdump: str) -> tuple[int, int]:
    """Registers and bytes of stack (spills) per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", report.stdout + report.stderr)
    if found is None:
        raise BackendError(f"cuobjdump reports no register use: {report.stdout + report.stderr}")
    return int(found[1]), int(found[2])


def _portable(ptx: str) -> bytes:
    """PTX text for the driver: ends in a zero byte, without comments, which name files of this machine."""
    return re.sub(r"^\s*//.*\n", "", ptx, flags=re.MULTILINE).encode() + b"\0"


def _where(spec: Spec) -> str:
    where = f"{spec.kernel} for {text(spec.capability)}, {spec.dtype}, head_dim up to {spec.head_dims[1]}"
    limits = f"{spec.num_warps} warps, {spec.num_stages} stages, {spec.max_registers} registers"
    return f"{where}, {dict(spec.constants)}, {limits}"


def _check(result: Compiled, metadata: Any) -> None:
    where = _where(result.spec)
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise BackendError(f"{where}: this Triton needs scratch memory of its own", "use another version")
    if metadata.num_ctas != 1 or metadata.launch_cooperative_grid or metadata.launch_pdl:
        raise BackendError(f"{where}: this Triton needs a launch attribute", "use another version")
    if result.stack_bytes > MAX_STACK_BYTES:
        raise BackendError(f"{where}: spills {result.stack_bytes} bytes", "make BLOCK_N or T1 smaller in tuning.json")
    if result.shared_bytes > MAX_SHARED_BYTES:
        raise BackendError(
            f"{where}: {result.shared_bytes} bytes of shared memory", "make BLOCK_N or num_stages smaller"
        )


# ---- the whole set


def source_digest() -> str:
    """SHA-256 of the sources of the binaries: the kernels without their comments, and the block sizes."""
    sources = []
    for module in SOURCES:
        package, _, name = module.rpartition(".")
        source = (resources.files(package) / f"{name}.py").read_text(encoding="utf-8")
        sources.append(ast.unparse(ast.parse(source)))
    tuning = json.loads(TUNING.read_text(encoding="utf-8"))
    return hashlib.sha256(("".join(sources) + json.dumps(tuning, sort_keys=True)).encode()).hexdigest()


def compile_set(folder: Path, capabilities: Sequence[Capability] = CAPABILITIES, *, quiet: bool = False) -> None:
    """Compile the set for these capabilities, and the portable PTX, into a folder. The manifest is written last."""
    tuning = json.loads(TUNING.read_text(encoding="utf-8"))
    wanted = [spec for capability in capabilities for spec in specs(capability, tuning)]
    wanted += [Spec(**{**vars(spec), "format": "ptx"}) for spec in specs(PTX_CAPABILITY, tuning)]
    made = []
    for index, spec in enumerate(wanted):
        if not quiet:
            print(f"\r{index + 1} of {len(wanted)}: {spec.kernel} {text(spec.capability)} ", end="", flush=True)
        made.append(compile_spec(spec))
    if not quiet:
        print()
    write_set(folder, made)


def write_set(folder: Path, compiled: Sequence[Compiled]) -> None:
    """Write binaries as a folder that KernelSet.load can read. The manifest is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    packs: dict[str, bytearray] = {}
    records = []
    for made in compiled:
        pack = packs.setdefault(pack_key(made.binary()), bytearray())
        packed = zlib.compress(made.image, 9)
        records.append(made.binary(len(pack), len(packed)))
        pack += packed
    files = {key: f"{'ptx' if key == 'ptx' else 'sm_' + key.replace('.', '')}.bin" for key in packs}
    for key, pack in packs.items():
        (folder / files[key]).write_bytes(pack)
    manifest: dict[str, Any] = {
        "format": FORMAT[0],
        "version": FORMAT[1],
        "compiler": compiler_versions(),
        "source": source_digest(),
        "packs": {
            key: {"file": files[key], "size": len(pack), "sha256": hashlib.sha256(pack).hexdigest()}
            for key, pack in packs.items()
        },
        "arguments": {made.spec.kernel: made.arguments for made in compiled},
        "binaries": [_record(binary) for binary in records],
    }
    (folder / "manifest.json").write_text(_dumps(manifest), encoding="utf-8")


def _record(binary: Binary) -> dict[str, Any]:
    return {
        **vars(binary),
        "capability": text(binary.capability),
        "head_dims": list(binary.head_dims),
        "constants": dict(binary.constants),
    }


def compiler_versions() -> dict[str, str]:
    """Versions of Triton and of its assembler. The same versions produce the same bytes."""
    import triton

    report = subprocess.run([triton.knobs.nvidia.ptxas.path, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"V([\d.]+)", report.stdout)
    return {"triton": triton.__version__, "ptxas": found[1] if found else report.stdout.strip()}


def _dumps(manifest: Mapping[str, Any]) -> str:
    """JSON with one line per argument and per binary, for readable diffs."""
    head = json.dumps({k: v for k, v in manifest.items() if k not in ("arguments", "binaries")}, indent=2)
    arguments = ",\n".join(
        f'    "{kernel}": [\n' + ",\n".join(f"      {json.dumps(a)}" for a in entries) + "\n    ]"
        for kernel, entries in manifest["arguments"].items()
    )
    binaries = ",\n".join(f"    {json.dumps(record)}" for record in manifest["binaries"])
    return f'{head[:-2]},\n  "arguments": {{\n{arguments}\n  }},\n  "binaries": [\n{binaries}\n  ]\n}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ebca.plugins.compile", description="Compile the GPU kernels ahead of time."
    )
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR", help="default: in the package")
    parser.add_argument("--capabilities", default=",".join(map(text, CAPABILITIES)), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        compile_set(args.output, [_capability(part) for part in args.capabilities.split(",")])
    except EbcaError as error:
        print(f"\n{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _capability(part: str) -> Capability:
    known = {text(capability): capability for capability in CAPABILITIES}
    if part.strip() not in known:
        raise BackendError(f"no kernels for compute capability {part.strip()!r}", f"choose among {', '.join(known)}")
    return known[part.strip()]


if __name__ == "__main__":
    sys.exit(main())
