"""Checks of an engine directory: its contents, its files, its plans, and a trial run."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebca import console
from ebca.engines.backends import tensorrt_library as tensorrt
from ebca.engines.backends.protocol import BackendOptions, PreparingBackend
from ebca.engines.backends.registry import GPU_BACKENDS
from ebca.engines.cache import storage
from ebca.engines.cache.prepared import prepared_engine
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.engines.contract.manifest import Manifest
from ebca.engines.contract.plans import LibraryPlans, describe
from ebca.errors import BackendError, EbcaError, EngineError, NumericalError
from ebca.runtime.denoiser import Denoiser
from ebca.runtime.devices.choice import AUTO, DeviceChoice, choose
from ebca.runtime.diagnostics import verify as verification
from ebca.runtime.diagnostics.findings import Finding, explain, size_text
from ebca.runtime.diagnostics.machine import gpus
from ebca.runtime.diagnostics.trial import random_conditions
from ebca.runtime.engine import Engine, load
from ebca.runtime.execution.control import EnergyControl
from ebca.runtime.sampling import tables

# Latent rows and columns of the trial evaluation: divisible by the UNet's total downscaling of 8.
_TRIAL_SIDE = 8


def check_engine(engine: str | Path, backend: str | None = None, *, verify: bool = False) -> Iterator[Finding]:
    """Describe an engine directory, compare its files with the manifest, and run its UNet once.

    Args:
        engine: the directory, or the name of a bundled engine.
        backend: runs the UNet; None: the default on the device that "auto" stands for.
        verify: also compare every part on `backend` with ONNX Runtime on the CPU.
    """
    try:
        directory = open_directory(engine)
    except EngineError as error:
        yield Finding("problem", "engine", *explain(error))
        return
    yield from _describe(directory.manifest)
    damaged = list(_damaged_files(directory))
    yield from damaged
    if damaged:
        yield Finding("note", "trial", "skipped: the engine directory is damaged")
        return
    total = sum(record.size for record in directory.manifest.files.values())
    yield Finding("ok", "files", f"all {len(directory.manifest.files)} are intact, {size_text(total)}")
    plans = directory.manifest.plans
    for library, built in plans.items():
        yield from _check_plans(library, built, directory.manifest, wanted=backend == library)
    if backend in tensorrt.LIBRARIES and backend not in plans:
        text = f"this engine directory has no plans for {backend}"
        yield Finding("problem", "plans", text, f"export again with --backend {backend}, or try another backend")
    if backend in GPU_BACKENDS and not gpus():
        yield Finding("note", "trial", "skipped: no NVIDIA GPU found")
        return
    choice = None if backend in GPU_BACKENDS else choose(directory, AUTO, backend, BackendOptions())
    if choice is not None:
        yield _auto(directory, choice, backend)
    yield from _try(directory, backend, choice)
    if verify and backend is not None:
        yield from check_verified(directory.path, backend)


def check_verified(engine: str | Path, backend: str) -> Iterator[Finding]:
    """Compare every part of an engine on a backend with ONNX Runtime on the CPU."""
    device = "cuda" if backend in GPU_BACKENDS else "cpu"
    against = f"{verification.REFERENCE} on the CPU"
    try:
        with (
            load(engine, device, backend) as opened,
            load(engine, "cpu", verification.REFERENCE) as reference,
            console.ProgressLine() as line,
        ):
            parts = verification.verify(opened, reference, lambda done, total, part: line.update(part, done, total))
    except (EbcaError, ImportError, OSError) as error:
        yield Finding("problem", "verify", *explain(error))
        return
    wrong = [part for part in parts if not part.ok]
    for part in wrong:
        text = f"{part.part} differs from {against} by {part.error:.1e} (relative L2, limit {part.limit:.0e})"
        yield Finding("problem", "verify", text, "export again; if this persists, report it with these lines")
    if not wrong:
        worst = max(parts, key=lambda part: part.error)
        text = f"all {len(parts)} parts agree with {against}: at most {worst.error:.1e}, in {worst.part}"
        yield Finding("ok", "verify", f"{text} (relative L2, limit {worst.limit:.0e})")


def _auto(directory: EngineDirectory, choice: DeviceChoice, backend: str | None) -> Finding:
    """The device that programs use for this engine directory unless they are told otherwise."""
    # Worth a look only if a GPU is there and is not used.
    missed = choice.device == "cpu" and backend is None and directory.manifest.compute == "fp16" and gpus()
    return Finding("note" if missed else "ok", "device", f"auto is {choice.device}: {choice.reason}")


def _check_plans(library: str, plans: LibraryPlans, manifest: Manifest, *, wanted: bool) -> Iterator[Finding]:
    """Describe the plans of one library, and check whether they run on this machine."""
    files = [plan.file for entries in plans.components.values() for plan in entries]
    size = sum(manifest.files[file].size for file in files)
    shapes = " or ".join(describe(shape) for shape in plans.shapes)
    yield Finding(
        "ok",
        "plans",
        f"{len(files)} for {library} {plans.version}, compute capability {', '.join(plans.compute_capabilities)}, "
        f"{plans.platform}: {size_text(size)}; {shapes}",
    )
    level = "problem" if wanted else "note"
    present = gpus()
    if not present:
        text = "the plans cannot run on this machine: no NVIDIA GPU found"
        yield Finding(level, "plans", text, "use --backend onnxruntime, which runs the same graphs on the CPU, slowly")
        return
    installed = tensorrt.installed_version(library)
    if installed is None:
        yield Finding(level, "plans", f"{library} is not installed", f"run `pip install {library}=={plans.version}`")
        return
    for gpu in present:
        try:
            tensorrt.check_target(plans, library, gpu, installed)
        except BackendError as error:
            # With several GPUs, another one may fit.
            yield Finding("note" if len(present) > 1 and not wanted else "problem", "plans", *explain(error))
            continue
        stored = list(tensorrt.runtime_cache(library, installed, gpu).glob("*.cache"))
        compiled = size_text(sum(path.stat().st_size for path in stored))
        text = f"they fit {gpu.name}; its runtime cache holds {len(stored)} of them, {compiled}"
        yield Finding("ok", "plans", text)


def _describe(manifest: Manifest) -> Iterator[Finding]:
    unet, vae = manifest.unet, manifest.vae
    maker = manifest.created_by.get("ebca", "?")
    text = f"{manifest.model['name']}, {manifest.kind}, weights {manifest.precision}, computes in {manifest.compute}, "
    text += f"exported by ebca {maker}"
    yield Finding("ok", "engine", text)
    side = unet.sample_size * (vae.downscale if vae else 8)
    parts = [f"{len(unet.segments)} segments, {len(unet.layers)} cross-attention layers, native size {side} x {side}"]
    if manifest.text_encoder is not None and manifest.text_encoder.pooled_size is not None:
        parts.append("two text encoders")
    absent = [
        n
        for n, p in (("text encoder", manifest.text_encoder), ("VAE", vae), ("tokenizer", manifest.tokenizer))
        if not p
    ]
    if absent:
        parts.append(f"no {', '.join(absent)}: takes embeddings, returns latents")
    parts.append("schedulers " + ", ".join(manifest.schedulers.get("tables", {})))
    yield Finding("ok", "contents", "; ".join(parts))
    errors = dict(_parity(manifest.parity))
    if not errors:
        yield Finding("note", "parity", "the manifest records no comparison with PyTorch")
        return
    worst = max(errors, key=lambda name: errors[name])
    yield Finding("ok", "parity", f"at export at most {errors[worst]:.1e} from PyTorch (relative L2), in {worst}")


def _parity(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every error in a manifest's parity record, which may be nested. "sizes" holds no errors."""
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
                yield Finding("problem", "files", *explain(error))
            done += record.size


def _try(directory: EngineDirectory, backend: str | None, choice: DeviceChoice | None) -> Iterator[Finding]:
    """Run one evaluation with updates on small latents, where `ebca-run` would run it.

    Args:
        directory, backend: what to run, and what runs it.
        choice: the device that "auto" should be, and has been reported; None if `backend` decides.
    """
    manifest = directory.manifest
    try:
        began = time.perf_counter()
        known = {stored.folder for stored in storage.stored_engines()}
        with console.PrepareProgress() as progress:
            engine = load(directory.path, backend=backend, on_prepare=progress)
        with engine:
            where, made = engine.backend.name, engine.device_choice
            if choice is not None and made.device != choice.device:
                yield Finding("note", "device", f"auto becomes {made.device}: {made.reason}")
            _check_data(engine)
            if isinstance(engine.backend, PreparingBackend):
                yield _prepared(where, progress.seconds, prepared_engine(directory, engine.backend).folder in known)
            sample, given = _trial_inputs(manifest, where)
            result = Denoiser(engine)(
                sample,
                500.0,
                given["contexts"],
                EnergyControl(0.01, 0.02),
                text_embeds=given.get("text_embeds"),
                time_ids=given.get("time_ids"),
            )
            if not np.isfinite(result.contexts).all():
                raise NumericalError("the updated contexts are not finite", "check the checkpoint")
        seconds = time.perf_counter() - began
    except (EbcaError, ImportError, OSError) as error:
        yield Finding("problem", "trial", *explain(error))
        return
    height, width = (side * (manifest.vae.downscale if manifest.vae else 8) for side in sample.shape[2:])
    yield Finding(
        "ok",
        "trial",
        f"an evaluation at {height} x {width} pixels by {where} on {engine.device.name} gave finite results; opening "
        f"and running took {seconds:.1f} s",
    )


def _check_data(engine: Engine) -> None:
    """Read the tokenizer and every scheduler table as a generation does. Raises EngineError."""
    section, path = engine.manifest.schedulers, engine.directory.path
    if engine.manifest.tokenizer is not None:
        _ = engine.tokenizer
    engine.verify_tables()
    tables.load_alphas_cumprod(path, section)
    for name in tables.available_schedulers(section):
        for steps in tables.stored_steps(section, name):
            tables.load_table(path, section, name, steps)


def _prepared(backend: str, seconds: float | None, known: bool) -> Finding:
    """Whether components had to be prepared, which took `seconds`; `known`: the cache had this engine."""
    if seconds is None:
        return Finding("ok", "prepared", f"ready for {backend}")
    what = "parts were missing or outdated" if known else "this was the first use"
    return Finding("ok", "prepared", f"for {backend} in {seconds:.1f} s: {what}")


def _trial_inputs(manifest: Manifest, backend: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Latents [rows,C,h,w] float32, small, or of a size that the backend's plans have, and `random_conditions`."""
    rows, height, width = 2, _TRIAL_SIDE, _TRIAL_SIDE
    if backend in manifest.plans:
        rows, height, width = (manifest.plans[backend].shapes[0][name][1] for name in ("batch", "height", "width"))
    tokens = manifest.text_encoder.max_length if manifest.text_encoder else 77
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((rows, manifest.unet.in_channels, height, width), np.float32)
    return sample, random_conditions(manifest.unet, {"batch": rows, "contexts": 1, "tokens": tokens}, rng)
