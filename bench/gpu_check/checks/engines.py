"""Makes the engine directories that are missing: unpacks them, or exports them."""

import subprocess
import sys
import time
from pathlib import Path

from ebca.bench.gpu_check.checks.plans import why_not
from ebca.bench.gpu_check.packed.archive import unpack
from ebca.bench.gpu_check.results import Failed, Found
from ebca.bench.gpu_check.visit import BACKEND, DEFAULT_MODEL, Visit
from ebca.errors import EbcaError

_BUILT_IN = {"tiny": "tiny", "tiny-xl": "tiny-xl"}
_SHAPES = Path(__file__).resolve().parents[3] / "examples" / "shapes" / "shapes"


def run(visit: Visit, found: Found) -> None:
    wrong = []
    visit.made.mkdir(parents=True, exist_ok=True)
    for name in visit.wanted:
        if visit.find(name) is not None:
            continue
        began = time.monotonic()
        packed, target = visit.packed(name), visit.made / name
        try:
            if packed is not None:
                unpack(packed, target)
            elif visit.export and _can_run(visit, name):
                _export(export_words(visit, name, target))
            else:
                continue
        except (EbcaError, Failed) as error:
            wrong.append(f"{name}: {error}")
            continue
        found[name] = {"packed": packed is not None, "seconds": round(time.monotonic() - began, 1)}
    if wrong:
        raise Failed("; ".join(wrong))


def export_words(visit: Visit, name: str, target: Path) -> list[str]:
    """The arguments of ebca-export that make an engine directory, named as in `table.PARTS`."""
    which, backend = _split(name)
    backend, full_plan, _ = backend.partition("-full-unet-plan")
    models = {**_BUILT_IN, "shapes": str(_SHAPES), "model": visit.model or DEFAULT_MODEL}
    words = ["--model", models[which], "--backend", backend or BACKEND, "--output-dir", str(target)]
    if which == "model":
        words.append("--with-full-unet")
    if backend == "tensorrt-rtx":
        words += ["--compute-capability", visit.capability]
    return [*words, "--full-unet-plan"] if full_plan else words


def _split(name: str) -> tuple[str, str]:
    """Which model a directory has, and the backend of its plans; "" for none."""
    if name in _BUILT_IN:
        return name, ""
    which, _, backend = name.partition("-")
    return which, backend


def _can_run(visit: Visit, name: str) -> bool:
    _, backend = _split(name)
    return not backend or why_not(backend.removesuffix("-full-unet-plan"), visit.capability) is None


def _export(words: list[str]) -> None:
    # What it prints belongs to the log of this part.
    done = subprocess.run([sys.executable, "-m", "ebca.export.cli", *words], check=False)
    if done.returncode != 0:
        raise Failed(f"ebca-export {' '.join(words)} ended with exit code {done.returncode}")
