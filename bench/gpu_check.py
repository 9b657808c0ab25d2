"""Everything that needs an NVIDIA GPU, in one run with one result: `bench/gpu_check.sh`.

Each part runs whatever the parts before it did; what failed is in the result with the end of what it printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import ebca
from ebca import console
from ebca.bench.compare import ROWS
from ebca.engines.backends.registry import GPU_BACKENDS
from ebca.engines.machine import nvidia
from ebca.errors import BackendError
from ebca.runtime.engine import load

PROGRAM = "gpu_check"

# Of float16 against float32 on pictures of `shapes`.
MIN_PSNR_DB = 40.0
_PROMPTS = ("a red circle and a blue square", "a yellow star", "a green cross left of a pink heart")
_STEPS = 25
_ROUNDS = 6
_TAIL = 4000


@dataclass(frozen=True)
class Part:
    """A part of the check: its name, and what gives its result as JSON values; raising means it failed."""

    name: str
    run: Callable[[], Any]


class Failed(Exception):
    """A part failed; the text is what it printed last."""


def command(words: Sequence[str], result: Path | None = None, environment: Mapping[str, str] | None = None) -> Any:
    """Run a command; the JSON it wrote to `result`, or the end of what it printed. Raises Failed."""
    done = subprocess.run(
        list(words), capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    printed = (done.stdout + done.stderr)[-_TAIL:]
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}\n{printed}")
    return json.loads(result.read_text(encoding="utf-8")) if result is not None else printed


def parts(model: str, work: Path, capability: str) -> list[Part]:
    """The parts in order. `work` is a folder for engines and results."""
    module = [sys.executable, "-m"]

    shapes = str(Path(__file__).parents[1] / "examples" / "shapes" / "shapes")

    def written(name: str, words: Sequence[str]) -> Part:
        result = work / f"{name}.json"
        return Part(name, lambda: command([*module, *words, "--json", str(result)], result))

    def exported(name: str, source: str, backend: str, directory: Path, *more: str) -> Part:
        words = [*module, "ebca.export.cli", "--model", source, "--backend", backend, "--overwrite", *more]
        words += ["--compute-capability", capability] if backend == "tensorrt-rtx" else []
        return Part(name, lambda: command([*words, "--output-dir", str(directory)]))

    def of_backend(backend: str, *more: str) -> list[Part]:
        name = " ".join((backend, *more))
        small, full = (work / f"{which}-{name.replace(' ', '')}" for which in ("shapes", "model"))
        bench = ["ebca.bench.cli", "--engine", str(full), "--device", "cuda", "--backend", backend, "--segments"]
        bench += ["--compare-with", ",".join(ROWS)]
        verify = [*module, "ebca.runtime.cli.doctor", "--engine", str(full), "--backend", backend, "--verify"]
        return [
            exported(f"export shapes, {name}", shapes, backend, small, *more),
            Part(f"pictures, {name}", lambda: pictures(small, backend)),
            exported(f"export, {name}", model, backend, full, "--with-vanilla", *more),
            Part(f"verify, {name}", lambda: command(verify)),
            written(f"latency, {name}", [*bench, "--model", model]),
            Part(f"50 steps, {name}", lambda: fifty_steps(full, backend)),
        ]

    found = [
        Part("nvidia-smi", lambda: command(["nvidia-smi"])),
        written("doctor", ["ebca.runtime.cli.doctor"]),
        Part("tests", lambda: command([*module, "pytest", "-q", "-m", "gpu", "-rs"])),
        written("kernel", ["ebca.bench.kernel"]),
    ]
    # TensorRT itself is not among the packages that are installed for this.
    ways: list[tuple[str, ...]] = [(name,) for name in GPU_BACKENDS if name != "tensorrt"]
    if find_spec("tensorrt"):
        ways += [("tensorrt",), ("tensorrt", "--one-piece")]
    return [*found, *(part for way in ways for part in of_backend(*way))]


def pictures(engine: Path, backend: str) -> dict[str, Any]:
    """Pictures of the GPU against the CPU's in float32, same seeds. Raises Failed below MIN_PSNR_DB."""
    settings: dict[str, Any] = {"steps": _STEPS, "scheduler": "ddim", "gamma_attn": 0.003, "gamma_norm": 0.003}
    made: dict[str, list[np.ndarray]] = {}
    for device, directory, chosen in (("cpu", "shapes", "onnxruntime"), ("cuda", engine, backend)):
        with load(directory, device, chosen) as opened, opened.session() as session:
            made[device] = [
                session.generate(prompt, seed=seed, output="np", **settings).images[0]
                for seed, prompt in enumerate(_PROMPTS)
            ]
    errors = [np.mean((a - b) ** 2) for a, b in zip(made["cpu"], made["cuda"], strict=True)]
    psnr = [float(10 * np.log10(1 / max(error, 1e-12))) for error in errors]
    if min(psnr) < MIN_PSNR_DB:
        raise Failed(f"PSNR against the CPU is {[round(p, 1) for p in psnr]} dB, {MIN_PSNR_DB} is wanted")
    return {"psnr_db": psnr, "prompts": _PROMPTS, **settings}


def fifty_steps(engine: Path, backend: str) -> dict[str, Any]:
    """Seconds of whole pictures of 50 steps, launched at once and step by step in turns; the first ones, which include
    compiling and recording, apart."""
    settings: dict[str, Any] = {"steps": 50, "seed": 0, "gamma_attn": 0.01, "gamma_norm": 0.02}
    ways: dict[str, Any] = {"one_launch": {}, "step_by_step": {"on_step": lambda info: True}}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with load(engine, "cuda", backend) as opened, opened.session() as session:
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                timings = session.generate("a photo of a cat", **settings, **way).timings
                denoising = sum(timings["unet_steps"]) + timings["scheduler"]
                taken[name].append((time.perf_counter() - began, denoising))
        made = {
            name: {
                "first_s": rounds[0][0],
                "picture_s": statistics.median(picture for picture, _ in rounds[1:]),
                "denoising_s": statistics.median(denoising for _, denoising in rounds[1:]),
            }
            for name, rounds in taken.items()
        }
        return {**made, "height": session.height, "width": session.width, **settings}


def check(model: str, out: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the parts (or those whose name begins with one of `only`) and write the result after each."""
    gpus = nvidia.find().gpus
    if not gpus:
        raise BackendError("the NVIDIA driver finds no GPU", "see `nvidia-smi`")
    gpu = gpus[0]
    report: dict[str, Any] = {
        "gpu": gpu.__dict__,
        "ebca": ebca.__version__,
        "python": platform.python_version(),
        "model": model,
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="ebca-gpu-") as work:
        for part in parts(model, Path(work), gpu.compute_capability):
            if only and not part.name.startswith(tuple(only)):
                continue
            print(f"{part.name} ...", flush=True)
            began = time.monotonic()
            try:
                entry: dict[str, Any] = {"ok": True, "result": part.run()}
            except Exception as error:
                entry = {"ok": False, "error": f"{type(error).__name__}: {error}"[-_TAIL:]}
            report["parts"][part.name] = {**entry, "seconds": round(time.monotonic() - began, 1)}
            print("  ok" if entry["ok"] else f"  FAILED: {entry['error'].splitlines()[0]}", flush=True)
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 where every part passed."""
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd-1.5", help="checkpoint for the latency parts (default: sd-1.5)")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="result (default: gpu_check.json)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts whose names begin so")
    args = parser.parse_args(argv)

    def body() -> int:
        report = check(args.model, args.json, args.only)
        failed = [name for name, part in report["parts"].items() if not part["ok"]]
        print(f"wrote {args.json}; " + (f"failed: {', '.join(failed)}" if failed else "all parts passed"))
        return 1 if failed else 0

    return console.run(PROGRAM, body, interrupted="interrupted; the parts that ran are in the result")


if __name__ == "__main__":
    sys.exit(main())
