"""Measurements in a new process: `python -m ebca.bench.gpu_check.checks.child HOST ENGINE BACKEND`.

HOST is "python" or "cpp". The last line printed is JSON: seconds from the start of the process to each event, and of
images after the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebca.bench.gpu_check.results import Failed

_IMAGES = 4
_TAIL = 2000


def measure(
    host: str,
    engine: Path,
    backend: str,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure in a new process.

    Args:
        host: "python" or "cpp".
        engine, backend: what to open.
        environment: variables to add.
        options: provider options that ONNX Runtime's sessions get on top of the backend's own; only with "python".

    Returns:
        open_s: loading the engine. first_image_s: loading, and the first image. process_s: the same with the start of
        the process and all imports. image_s, denoising_s: medians of later images.

    Raises:
        Failed: the process failed; the message is the end of what it printed.
    """
    words = [sys.executable, "-m", "ebca.bench.gpu_check.checks.child", host, str(engine), backend]
    words += [f"{name}={value}" for name, value in (options or {}).items()]
    words += ["--began", str(time.time())]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise Failed(f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-_TAIL:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser()
    p.add_argument("host", choices=("python", "cpp"))
    p.add_argument("engine", type=Path)
    p.add_argument("backend")
    p.add_argument("options", nargs="*")
    p.add_argument("--began", type=float, required=True)
    args = p.parse_args(argv)
    images = _python_images(args) if args.host == "python" else _cpp_images(args)
    print(json.dumps(images))
    return 0


def _python_images(args: argparse.Namespace) -> dict[str, Any]:
    from ebca.bench.gpu_check.checks.timing import UPDATE, one_image
    from ebca.runtime.engine import load

    sessions = _add_options(dict(option.split("=", 1) for option in args.options)) if args.options else None
    began = time.perf_counter()
    with load(args.engine, "cuda", args.backend) as opened, opened.session() as session:
        opened_s = time.perf_counter() - began
        one_image(session, **UPDATE)
        first, process = time.perf_counter() - began, time.time() - args.began
        if sessions is not None and not sessions:
            raise Failed("the backend passes no provider options to ONNX Runtime")
        times = [one_image(session, **UPDATE) for _ in range(_IMAGES)]
    return _result(opened_s, first, process, times)


def _cpp_images(args: argparse.Namespace) -> dict[str, Any]:
    from ebca.bench.gpu_check.checks.timing import PROMPT, STEPS, UPDATE
    from ebca.runtime.native import Library, Session

    def one_image(session: Session) -> tuple[float, float]:
        began = time.perf_counter()
        made = session.generate(PROMPT, steps=STEPS, seed=0, output="np", **UPDATE)
        return time.perf_counter() - began, sum(made.unet_seconds) + made.seconds["scheduler"]

    began = time.perf_counter()
    with Library().open(args.engine, device="cuda") as engine, engine.session() as session:
        opened_s = time.perf_counter() - began
        one_image(session)
        first, process = time.perf_counter() - began, time.time() - args.began
        times = [one_image(session) for _ in range(_IMAGES)]
    return _result(opened_s, first, process, times)


def _result(opened: float, first: float, process: float, times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    image, denoising = (statistics.median(values) for values in zip(*times, strict=True))
    return {
        "open_s": opened, "first_image_s": first, "process_s": process, "image_s": image, "denoising_s": denoising,
    }  # fmt: skip


def _add_options(more: Mapping[str, str]) -> list[str]:
    """Add provider options to all sessions that this process opens on a GPU. Returns a list that names them.

    Backends have no parameter for such experiments, so the library itself is wrapped.
    """
    import onnxruntime as ort

    open_session, opened = ort.InferenceSession, list[str]()

    def with_options(path: str, *given: Any, providers: Sequence[Any] = (), **others: Any) -> Any:
        changed = []
        for provider in providers:
            if not isinstance(provider, str) and provider[0].startswith("CUDA"):
                provider = (provider[0], {**provider[1], **more})
                opened.append(path)
            changed.append(provider)
        return open_session(path, *given, providers=changed, **others)

    ort.InferenceSession = with_options
    return opened


if __name__ == "__main__":
    sys.exit(main())
