"""ebca-doctor: this machine and an engine directory in plain language, with the remedy for every problem."""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.text import Text

import ebca
from ebca.engines import backend as backends
from ebca.engines import cache, nvidia, tensorrt
from ebca.engines.backend import BACKENDS, GPU_BACKENDS, BackendOptions
from ebca.engines.directory import EngineDirectory, open_directory
from ebca.engines.manifest import Manifest
from ebca.engines.plans import LibraryPlans, describe
from ebca.errors import BackendError, EbcaError, EngineError, NumericalError, ParameterError
from ebca.runtime import console
from ebca.runtime import verify as verification
from ebca.runtime.control import EnergyControl
from ebca.runtime.denoiser import Denoiser
from ebca.runtime.engine import load

PROGRAM = "ebca-doctor"

_EXPORT_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "accelerate")
# A prepared SD 1.5 with its text encoder and VAE takes about 5 GB of disk.
_FREE_DISK_BYTES = 6e9
# Latent rows and columns of the trial evaluation: what three halvings still divide.
_TRIAL_SIDE = 8

_EXAMPLES = """examples:
  ebca-doctor
  ebca-doctor --engine engine-sd15
  ebca-doctor --engine engine-sd15 --backend onnxruntime --json
  ebca-doctor --engine engine-gpu --backend tensorrt-rtx --verify
  ebca-doctor --clear-cache
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: "ok", "note" (could be better) or "problem"; remedy: what to do."""

    level: str
    topic: str
    text: str
    remedy: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Check this machine and, with --engine, an engine directory: every file's contents, and one small\n"
        "UNet evaluation. Exit code 0 where nothing is wrong, else 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--engine", metavar="DIR", help="engine directory made by ebca-export, or a bundled name")
    p.add_argument(
        "--backend",
        choices=(*BACKENDS, *GPU_BACKENDS),
        help="backend to try the engine with (default: the best installed)",
    )
    p.add_argument(
        "--verify",
        action="store_true",
        help="compare every part of the engine on --backend with onnxruntime on the CPU",
    )
    p.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the findings as JSON, to FILE or instead of the text",
    )
    p.add_argument(
        "--clear-cache",
        action="store_true",
        help="delete all prepared engines in the cache (they are made again when needed) and do nothing else",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _run(args), interrupted="interrupted; nothing was changed")


def _run(args: argparse.Namespace) -> int:
    if args.clear_cache:
        freed, count = clear_cache()
        engines = "prepared engine" if count == 1 else "prepared engines"
        print(f"freed {_size(freed)}: {count} {engines} in '{cache.cache_folder()}'")
        return 0
    out = Console(soft_wrap=True, highlight=False)
    found: list[Finding] = []

    def report(findings: Iterator[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            if args.json != "-":
                _print(out, finding)

    if args.verify and (args.engine is None or args.backend in (None, verification.REFERENCE)):
        raise ParameterError(
            f"--verify compares a backend with {verification.REFERENCE} on the CPU",
            "give --engine and another --backend",
        )
    report(check_environment(args.backend))
    if args.engine is not None:
        report(check_engine(args.engine, args.backend, verify=args.verify))
    problems = sum(f.level == "problem" for f in found)
    if args.json is not None:
        data = {"ok": not problems, "engine": args.engine, "findings": [asdict(f) for f in found]}
        if args.json == "-":
            print(json.dumps(data, indent=1))
        else:
            console.write_json(args.json, data)
    if args.json != "-":
        out.print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems")
    return 1 if problems else 0


def check_environment(backend: str | None = None) -> Iterator[Finding]:
    """What is installed and what the machine has."""
    yield Finding("ok", "ebca", f"{ebca.__version__} on Python {platform.python_version()}, {platform.system()}")
    yield from _check_backends(None if backend in GPU_BACKENDS else backend)
    yield from _check_gpus(wanted=backend in GPU_BACKENDS)
    yield from _check_processor()
    yield _check_memory()
    yield from _check_cache()
    yield _check_export_packages()


def check_engine(engine: str | Path, backend: str | None = None, *, verify: bool = False) -> Iterator[Finding]:
    """What an engine directory holds, whether its files are what was exported, and whether its UNet runs; with `verify`
    whether every part computes on `backend` what it computes with ONNX Runtime on the CPU."""
    try:
        directory = open_directory(engine)
    except EngineError as error:
        yield Finding("problem", "engine", *_explain(error))
        return
    yield from _describe(directory.manifest)
    damaged = list(_damaged_files(directory))
    yield from damaged
    if damaged:
        yield Finding("note", "trial", "left out: the engine is damaged")
        return
    total = sum(record.size for record in directory.manifest.files.values())
    yield Finding("ok", "files", f"all {len(directory.manifest.files)} are what was exported, {_size(total)}")
    plans = directory.manifest.plans
    for library, built in plans.items():
        yield from _check_plans(library, built, directory.manifest, wanted=backend == library)
    if backend in tensorrt.LIBRARIES and backend not in plans:
        text = f"this engine directory has no plans for {backend}"
        yield Finding("problem", "plans", text, f"export again with --backend {backend}, or try another backend")
    if backend in GPU_BACKENDS and not _gpus():
        yield Finding("note", "trial", "left out: there is no NVIDIA GPU")
        return
    yield from _try(directory, backend)
    if verify and backend is not None:
        yield from check_verified(directory.path, backend)


def check_verified(engine: str | Path, backend: str) -> Iterator[Finding]:
    """Whether every part of an engine computes on a backend what it computes with ONNX Runtime on the CPU."""
    device = "cuda" if backend in GPU_BACKENDS else "cpu"
    against = f"{verification.REFERENCE} on the CPU"
    try:
        with (
            load(engine, device, backend) as opened,
            load(engine, backend=verification.REFERENCE) as reference,
            console.ProgressLine() as line,
        ):
            parts = verification.verify(opened, reference, lambda done, total, part: line.update(part, done, total))
    except (EbcaError, ImportError, OSError) as error:
        yield Finding("problem", "verify", *_explain(error))
        return
    wrong = [part for part in parts if not part.ok]
    for part in wrong:
        text = f"{part.part} differs from {against} by {part.error:.1e} (relative L2, limit {part.limit:.0e})"
        yield Finding("problem", "verify", text, "export again; if it stays, report it with these lines")
    if not wrong:
        worst = max(parts, key=lambda part: part.error)
        text = f"all {len(parts)} parts agree with {against}: at most {worst.error:.1e}, in {worst.part}"
        yield Finding("ok", "verify", f"{text} (relative L2, limit {worst.limit:.0e})")


def clear_cache() -> tuple[int, int]:
    """Delete every prepared engine; returns the bytes freed and how many there were. Nothing else is touched.

    Raises:
        EngineError: one cannot be deleted.
    """
    engines = cache.stored_engines()
    for engine in engines:
        try:
            shutil.rmtree(engine.folder)
        except OSError as error:
            raise EngineError(
                f"cannot delete '{error.filename or engine.folder}': {error.strerror or error}",
                "stop what uses it, or delete it by hand",
            ) from None
    return sum(engine.size for engine in engines), len(engines)


def cpu_name() -> str:
    """The processor's model name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check_backends(wanted: str | None) -> Iterator[Finding]:
    present = backends.available()
    if "onnxruntime" in present:
        yield Finding("ok", "onnxruntime", _version("onnxruntime"))
    else:
        yield Finding("problem", "onnxruntime", "not installed", "run `pip install onnxruntime`")
    if "openvino" in present:
        yield Finding("ok", "openvino", _version("openvino"))
    else:
        yield Finding(
            "note",
            "openvino",
            "not installed; it adds bfloat16",
            'run `pip install "ebca[openvino]"`',
        )
    try:
        chosen = backends.create(wanted, BackendOptions()).name
    except (EbcaError, ImportError, OSError) as error:
        text, remedy = _explain(error)
        yield Finding("problem", "backend", text, remedy or "install it again")
        return
    if wanted:
        why = "asked for"
    elif len(present) > 1:
        why = "for float32; bf16 takes openvino, --backend chooses"
    else:
        why = "the only one installed"
    yield Finding("ok", "backend", f"{chosen}: {why}")
    yield _check_bf16(present)


def _check_bf16(present: Sequence[str]) -> Finding:
    if "openvino" not in present:
        return Finding("note", "bf16", "needs openvino", 'run `pip install "ebca[openvino]"`')
    try:
        backends.create("openvino", BackendOptions(precision="bf16"))
    except (EbcaError, ImportError, OSError):
        return Finding("note", "bf16", "this processor has none (AVX512-BF16 or AMX); use precision fp32")
    return Finding("ok", "bf16", "available: `--backend openvino --precision bf16` is faster and a little less exact")


def _check_gpus(*, wanted: bool) -> Iterator[Finding]:
    """The driver and the GPUs; only a problem where a backend for GPUs was asked for."""
    try:
        found = nvidia.find()
    except BackendError as error:
        yield Finding("problem" if wanted else "note", "gpu", *_explain(error))
        return
    for gpu in found.gpus:
        text = f"{gpu.name}, compute capability {gpu.compute_capability}, {_size(gpu.memory)}"
        yield Finding("ok", "gpu", f"{text}; driver for CUDA up to {found.cuda}")
    if not found.gpus:
        text = f"the NVIDIA driver (CUDA up to {found.cuda}) finds no GPU"
        yield Finding("problem" if wanted else "note", "gpu", text, "check it with `nvidia-smi`, or use the CPU")
    for library in tensorrt.LIBRARIES:
        if (installed := tensorrt.installed_version(library)) is not None:
            yield Finding("ok", library, installed)


def _gpus() -> tuple[nvidia.Gpu, ...]:
    with suppress(BackendError):
        return nvidia.find().gpus
    return ()


def _check_plans(library: str, plans: LibraryPlans, manifest: Manifest, *, wanted: bool) -> Iterator[Finding]:
    """What was built ahead of time, and whether it runs here."""
    files = [plan.file for entries in plans.components.values() for plan in entries]
    size = sum(manifest.files[file].size for file in files)
    shapes = " or ".join(describe(shape) for shape in plans.shapes)
    yield Finding(
        "ok",
        "plans",
        f"{len(files)} for {library} {plans.version}, compute capability {', '.join(plans.compute_capabilities)}, "
        f"{plans.platform}: {_size(size)}; {shapes}",
    )
    level = "problem" if wanted else "note"
    gpus = _gpus()
    if not gpus:
        text = "the plans cannot run here: there is no NVIDIA GPU"
        yield Finding(level, "plans", text, "use --backend onnxruntime, which runs the same graphs on the CPU, slowly")
        return
    installed = tensorrt.installed_version(library)
    if installed is None:
        yield Finding(level, "plans", f"{library} is not installed", f"run `pip install {library}=={plans.version}`")
        return
    for gpu in gpus:
        try:
            tensorrt.check_target(plans, library, gpu, installed)
        except BackendError as error:
            # Another one of several GPUs may do.
            yield Finding("note" if len(gpus) > 1 and not wanted else "problem", "plans", *_explain(error))
            continue
        stored = list(tensorrt.runtime_cache(library, installed, gpu).glob("*.cache"))
        compiled = _size(sum(path.stat().st_size for path in stored))
        text = f"they fit {gpu.name}; its runtime cache holds {len(stored)} of them, {compiled}"
        yield Finding("ok", "plans", text)


def _check_processor() -> Iterator[Finding]:
    cores = psutil.cpu_count(logical=False) or 1
    yield Finding(
        "ok", "processor", f"{cpu_name()}; {cores} physical cores, one thread each unless --threads says else"
    )
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    if allowed < cores:
        yield Finding(
            "note",
            "processor",
            f"this process may use {allowed} of {cores} cores",
            f"pass `--threads {allowed}`",
        )


def _check_memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{_size(memory.total)}, {_size(memory.available)} available"
    # Peak of an SD 1.5 generation at 512 x 512 in float32, measured at 4.4 GB and rounded up.
    if memory.available < 6e9:
        return Finding("note", "memory", text, "SD 1.5 at 512 x 512 needs 6 GB; close other programs")
    return Finding("ok", "memory", text)


def _check_cache() -> Iterator[Finding]:
    folder = cache.cache_folder()
    try:
        bound = cache.cache_limit()
    except ParameterError as error:
        yield Finding("problem", "cache", *_explain(error))
        bound = cache.DEFAULT_LIMIT_GB * 1e9
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("problem", "cache", f"'{folder}' cannot be written", "set EBCA_CACHE_DIR to a folder that can")
        return
    engines = cache.stored_engines()
    size = sum(engine.size for engine in engines)
    free = shutil.disk_usage(existing).free
    text = (
        f"'{folder}' holds {len(engines)} prepared engine{'' if len(engines) == 1 else 's'}, {_size(size)}; "
        f"kept below {bound / 1e9:g} GB (EBCA_CACHE_LIMIT_GB); disk has {_size(free)} free"
    )
    if free < _FREE_DISK_BYTES:
        remedy = "free some, set EBCA_CACHE_DIR, or run `ebca-doctor --clear-cache`"
        yield Finding("note", "cache", f"{text}; preparing SD 1.5 needs about {_size(_FREE_DISK_BYTES)}", remedy)
    else:
        yield Finding("ok", "cache", text)


def _check_export_packages() -> Finding:
    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed; only exporting and comparing needs them"
        return Finding("note", "export", text, 'to export: `pip install "ebca[export]"`')
    return Finding("ok", "export", ", ".join(f"{name} {_version(name)}" for name in _EXPORT_PACKAGES))


def _describe(manifest: Manifest) -> Iterator[Finding]:
    unet, vae = manifest.unet, manifest.vae
    maker = manifest.created_by.get("ebca", "?")
    text = f"{manifest.model['name']}, {manifest.kind}, weights {manifest.precision}, computes in {manifest.compute}, "
    text += f"exported by ebca {maker}"
    yield Finding("ok", "engine", text)
    side = unet.sample_size * (vae.downscale if vae else 8)
    parts = [f"{len(unet.segments)} segments, {len(unet.layers)} cross-attention layers, native size {side}x{side}"]
    absent = [
        n
        for n, p in (("text encoder", manifest.text_encoder), ("VAE", vae), ("tokenizer", manifest.tokenizer))
        if not p
    ]
    if absent:
        parts.append(f"without {', '.join(absent)}: takes embeddings and gives latents")
    parts.append("schedulers " + ", ".join(manifest.schedulers.get("tables", {})))
    yield Finding("ok", "contents", "; ".join(parts))
    errors = dict(_parity(manifest.parity))
    if not errors:
        yield Finding("note", "parity", "the manifest has no comparison with PyTorch")
        return
    worst = max(errors, key=lambda name: errors[name])
    yield Finding("ok", "parity", f"at export at most {errors[worst]:.1e} from PyTorch (relative L2), in {worst}")


def _parity(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every error of a manifest's parity record: numbers, some of them in groups; sizes are no errors."""
    for name, value in record.items():
        if name == "sizes":
            continue
        if isinstance(value, Mapping):
            yield from _parity(value, f"{name}: ")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)


def _damaged_files(directory: EngineDirectory) -> Iterator[Finding]:
    files = directory.manifest.files
    total = sum(record.size for record in files.values())
    done = 0
    with console.ProgressLine() as line:
        for name, record in files.items():
            line.update(f"checking {name}", done, total)
            try:
                directory.verify([name])
            except EngineError as error:
                yield Finding("problem", "files", *_explain(error))
            done += record.size


def _try(directory: EngineDirectory, backend: str | None) -> Iterator[Finding]:
    """One energy step of the UNet on a small latent."""
    manifest = directory.manifest
    rng = np.random.default_rng(0)
    tokens = manifest.text_encoder.max_length if manifest.text_encoder else 77
    sample = rng.standard_normal((2, manifest.unet.in_channels, _TRIAL_SIDE, _TRIAL_SIDE), np.float32)
    contexts = rng.standard_normal((2, 1, tokens, manifest.unet.context_dim), np.float32)
    try:
        began = time.perf_counter()
        if backend in GPU_BACKENDS:
            engine = load(directory.path, device="cuda", backend=backend)
        else:
            chosen = backends.create(backend, BackendOptions())
            prepared = cache.prepared_engine(directory, chosen).folder.is_dir()
            with console.PrepareProgress() as progress:
                engine = load(directory.path, backend=chosen.name, on_prepare=progress)
            if progress.seconds is None:
                yield Finding("ok", "prepared", f"for {chosen.name}: opens at once")
            else:
                what = "parts of it were missing or stale" if prepared else "this was the first use"
                yield Finding("ok", "prepared", f"for {chosen.name} in {progress.seconds:.1f} s: {what}")
        with engine:
            result = Denoiser(engine)(sample, 500.0, contexts, EnergyControl(0.01, 0.02))
            if not np.isfinite(result.contexts).all():
                raise NumericalError("the updated contexts are not finite", "check the checkpoint")
        seconds = time.perf_counter() - began
    except (EbcaError, ImportError, OSError) as error:
        yield Finding("problem", "trial", *_explain(error))
        return
    pixels = _TRIAL_SIDE * (manifest.vae.downscale if manifest.vae else 8)
    yield Finding(
        "ok",
        "trial",
        f"an energy step at {pixels}x{pixels} is finite; opening and running took {seconds:.1f} s",
    )


def _explain(error: BaseException) -> tuple[str, str]:
    """(what is wrong, what to do), the latter "" where nobody knows."""
    return (error.problem, error.remedy) if isinstance(error, EbcaError) else (str(error), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # Some builds (onnxruntime-gpu) install under another name.
        return "(version unknown)"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _print(out: Console, finding: Finding) -> None:
    style = {"ok": "green", "note": "yellow", "problem": "bold red"}[finding.level]
    line = Text.assemble((f"{finding.level:<8} ", style), (f"{finding.topic}: ", "bold"), finding.text)
    if finding.remedy:
        line.append(f"\n{'':<9}-> {finding.remedy}")
    out.print(line)


if __name__ == "__main__":
    sys.exit(main())
